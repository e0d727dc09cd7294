"""How TensorFlow measures and scales; see `steadygrad.policies.stepping`."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import tensorflow as tf

from steadygrad.tensorflow import namespace
from steadygrad.tensorflow.norms import classes, flat, leaf_extremes, leaf_norms
from steadygrad.tensorflow.rounding import narrow, widen
from steadygrad.tensorflow.tracing import traced_for_xla


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
        by = tf.where(coef < 1.0, coef, tf.ones_like(coef))  # 1.0 leaves a number as it is
        if traced_for_xla():  # it fuses this into what reads the leaves, and is slow with stacks
            return _shrunk_each(
                leaves, [by[i] for i in range(len(leaves))] if by.shape.rank else by
            )
        return _scaled_by_graph(leaves, by)

    def held(self, x: Any) -> Any:
        return x

    def cleaned(self, leaf: Any) -> Any:
        return tf.where(tf.math.is_finite(leaf), leaf, tf.zeros_like(leaf))

    def size(self, leaf: Any) -> int:
        return int(leaf.shape.num_elements() or 0)


def _scaled_by_graph(leaves: Sequence[Any], by: Any) -> list[Any]:
    """Leaves of one size as rows of a matrix, in a conditional: few nodes, and often no write."""
    groups = classes(leaves, range(len(leaves)))
    pieces = [_rows([leaves[i] for i in alike]) for alike in groups]
    factors = [_factor(by, alike) for alike in groups] if by.shape.rank else by
    scaled = tf.cond(
        tf.reduce_any(by < 1.0), lambda: _fused(pieces)(pieces, factors), lambda: pieces
    )
    done: dict[int, Any] = {}
    for alike, piece in zip(groups, scaled, strict=True):
        done |= zip(alike, _apart(piece, [leaves[i] for i in alike]), strict=True)
    return [done[i] for i in range(len(leaves))]


def _rows(alike: Sequence[Any]) -> Any:
    return tf.stack([flat(leaf) for leaf in alike]) if len(alike) > 1 else alike[0]


def _apart(rows: Any, alike: Sequence[Any]) -> list[Any]:
    """What `_rows` joined."""
    if len(alike) == 1:
        return [rows]
    vectors = zip(tf.unstack(rows, len(alike)), alike, strict=True)
    return [v if leaf.shape.rank == 1 else tf.reshape(v, leaf.shape) for v, leaf in vectors]


def _factor(by: Any, alike: Sequence[int]) -> Any:
    return tf.gather(by, alike)[:, None] if len(alike) > 1 else by[alike[0]]


def _fused(pieces: Sequence[Any]) -> Any:
    """`_shrunk_each`, in a graph compiled by XLA: in one pass over each piece.

    A graph by itself would write each piece to memory in float64, twice.
    """
    known = all(piece.shape.is_fully_defined() for piece in pieces)
    if tf.executing_eagerly() or not (known and tf.test.is_built_with_xla()):
        return _shrunk_each
    return tf.function(_shrunk_each, jit_compile=True, autograph=False)


def _shrunk_each(leaves: Sequence[Any], factors: Any) -> list[Any]:
    """Leaves by one factor, or each by its own of a list."""
    by = factors if isinstance(factors, list) else [factors] * len(leaves)
    return [_shrunk(leaf, factor) for leaf, factor in zip(leaves, by, strict=True)]


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
