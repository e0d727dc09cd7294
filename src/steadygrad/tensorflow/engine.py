"""How TensorFlow measures and scales; see `steadygrad.policies.stepping`."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import tensorflow as tf

from steadygrad.tensorflow import namespace
from steadygrad.tensorflow.norms import SMALL, classes, leaf_extremes, leaf_norms
from steadygrad.tensorflow.rounding import narrow, widen


class TensorFlowEngine:
    """The `Engine` of dense TensorFlow tensors, eager, in graphs and under XLA."""

    xp: Any = namespace

    def scope(self) -> Any:
        return nullcontext()

    def norms(self, leaves: Sequence[Any], norm_type: float) -> tuple[Any, Any]:
        return leaf_norms(leaves, norm_type)

    def figures(self, leaves: Sequence[Any], norm_type: float) -> tuple[Any, Any, Any, Any]:
        norms, nonfinite = leaf_norms(leaves, norm_type)
        max_abs, zeros = leaf_extremes(leaves)
        return norms, max_abs, nonfinite, zeros

    def widen(self, x: Any) -> Any:
        return widen(x)

    def narrow(self, x: Any, like: Any) -> Any:
        return narrow(x, like.dtype)

    def scaled(self, leaves: Sequence[Any], coef: Any) -> list[Any]:
        if not leaves:
            return []
        coefs = tf.broadcast_to(coef, (len(leaves),))
        done: dict[int, Any] = {}
        large: list[int] = []
        for alike in classes(leaves, range(len(leaves))):
            if (leaves[alike[0]].shape.num_elements() or SMALL + 1) <= SMALL:
                done |= _scaled_rows(leaves, coefs, alike)
            else:
                large += alike
        groups = [[i] for i in large] if coef.shape.rank else [large]
        for group in filter(None, groups):
            done |= _scaled_at_once(leaves, coefs[group[0]], group)
        return [done[i] for i in range(len(leaves))]

    def held(self, x: Any) -> Any:
        return x

    def cleaned(self, leaf: Any) -> Any:
        return tf.where(tf.math.is_finite(leaf), leaf, tf.zeros_like(leaf))

    def size(self, leaf: Any) -> int:
        return int(leaf.shape.num_elements() or 0)


def _scaled_rows(leaves: Sequence[Any], coefs: Any, alike: list[int]) -> dict[int, Any]:
    """Small leaves of one size as the rows of a matrix.

    The conditional also keeps XLA from fusing the stacking into every row's code.
    """
    rows = tf.stack([tf.reshape(leaves[i], (-1,)) for i in alike])
    by = tf.gather(coefs, alike)[:, None]
    active = tf.reduce_any(by < 1.0)
    scaled = tf.cond(
        active, lambda: tf.where(by < 1.0, _shrunk(rows, by), rows), lambda: tf.identity(rows)
    )
    moved = tf.unstack(scaled, len(alike))
    return {i: tf.reshape(row, leaves[i].shape) for i, row in zip(alike, moved, strict=True)}


def _scaled_at_once(leaves: Sequence[Any], coef: Any, places: list[int]) -> dict[int, Any]:
    """Large leaves in one conditional: a graph then writes nothing where nothing is clipped."""
    given = [leaves[i] for i in places]
    found = tf.cond(
        coef < 1.0,
        lambda: _fused(given)(given, coef),
        lambda: [tf.identity(leaf) for leaf in given],
    )
    return dict(zip(places, found, strict=True))


def _fused(leaves: Sequence[Any]) -> Any:
    """`_shrunk` for a list; in a graph compiled by XLA, in one pass over each leaf.

    A graph by itself would write each leaf to memory in float64, twice.
    """

    def each(leaves: Sequence[Any], coef: Any) -> list[Any]:
        return [_shrunk(leaf, coef) for leaf in leaves]

    known = all(leaf.shape.is_fully_defined() for leaf in leaves)
    if tf.executing_eagerly() or not known or not tf.test.is_built_with_xla():
        return each
    return tf.function(each, jit_compile=True, autograph=False)


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
