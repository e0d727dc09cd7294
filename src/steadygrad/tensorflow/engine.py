"""How TensorFlow measures and scales; see `steadygrad.policies.stepping`."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import tensorflow as tf

from steadygrad.tensorflow import namespace
from steadygrad.tensorflow.norms import leaf_extremes, leaf_norms
from steadygrad.tensorflow.rounding import narrow, widen


class TensorFlowEngine:
    """The `Engine` of dense TensorFlow tensors, eager, in graphs and under XLA."""

    xp: Any = namespace

    def scope(self) -> Any:
        return nullcontext()

    def norms(self, leaves: Sequence[Any], norm_type: float) -> tuple[Any, Any]:
        return leaf_norms(leaves, norm_type)

    def extremes(self, leaves: Sequence[Any]) -> tuple[Any, Any]:
        return leaf_extremes(leaves)

    def widen(self, x: Any) -> Any:
        return widen(x)

    def narrow(self, x: Any, like: Any) -> Any:
        return narrow(x, like.dtype)

    def scaled(self, leaf: Any, coef: Any) -> Any:
        return self.scaled_alike([leaf], coef)[0]

    def scaled_alike(self, leaves: Sequence[Any], coef: Any) -> list[Any]:
        # one conditional: a graph then writes nothing where nothing is clipped
        found = tf.cond(
            coef < 1.0,
            lambda: [_shrunk(leaf, coef) for leaf in leaves],
            lambda: [tf.identity(leaf) for leaf in leaves],
        )
        return list(found) if isinstance(found, (list, tuple)) else [found]

    def held(self, x: Any) -> Any:
        return x

    def cleaned(self, leaf: Any) -> Any:
        return tf.where(tf.math.is_finite(leaf), leaf, tf.zeros_like(leaf))

    def size(self, leaf: Any) -> int:
        return int(leaf.shape.num_elements() or 0)


def _shrunk(leaf: Any, coef: Any) -> Any:
    wide = widen(leaf)
    return narrow(wide * tf.cast(coef, wide.dtype), leaf.dtype)


def densified(gradient: Any) -> Any:
    """A gradient as a dense tensor; the duplicates of IndexedSlices are added up."""
    if isinstance(gradient, tf.IndexedSlices):
        return tf.math.unsorted_segment_sum(
            gradient.values, gradient.indices, tf.cast(gradient.dense_shape[0], tf.int32)
        )
    return tf.convert_to_tensor(gradient)


def merged(gradient: Any) -> Any:
    """IndexedSlices with every index once, and what is in their place in the norm: the values."""
    if not isinstance(gradient, tf.IndexedSlices):
        return tf.convert_to_tensor(gradient)
    unique, places = tf.unique(gradient.indices)
    values = tf.math.unsorted_segment_sum(gradient.values, places, tf.size(unique))
    return tf.IndexedSlices(values, unique, gradient.dense_shape)
