"""How TensorFlow measures and scales; see `steadygrad.policies.stepping`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, TypeAlias

import tensorflow as tf

from steadygrad.tensorflow import namespace
from steadygrad.tensorflow.norms import classes, flat, leaf_extremes, leaf_norms
from steadygrad.tensorflow.rounding import narrow, widen
from steadygrad.tensorflow.tracing import traced_for_xla

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from steadygrad.typing import Namespace

Gradient: TypeAlias = "tf.Tensor | tf.IndexedSlices"
"""What `tf.GradientTape` gives for a variable: slices where it was read by index alone."""

Shrinking: TypeAlias = Callable[[list[tf.Tensor], "list[tf.Tensor] | tf.Tensor"], list[tf.Tensor]]
"""Leaves, and one factor or one each, to the products."""


class TensorFlowEngine:
    """The `Engine` of dense TensorFlow tensors, eager, in graphs and under XLA."""

    xp: Namespace = namespace

    def scope(self) -> AbstractContextManager[None]:
        return nullcontext()

    def norms(self, leaves: Sequence[tf.Tensor], norm_type: float) -> tuple[tf.Tensor, tf.Tensor]:
        return leaf_norms(leaves, norm_type)

    def figures(
        self, leaves: Sequence[tf.Tensor], norm_type: float
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor]:
        norms, nonfinite = leaf_norms(leaves, norm_type)
        max_abs, zeros = leaf_extremes(leaves)
        return norms, max_abs, nonfinite, zeros

    def widen(self, x: tf.Tensor) -> tf.Tensor:
        return widen(x)

    def narrow(self, x: tf.Tensor, like: tf.Tensor) -> tf.Tensor:
        return narrow(x, like.dtype)

    def scaled(self, leaves: Sequence[tf.Tensor], coef: tf.Tensor) -> list[tf.Tensor]:
        if not leaves:
            return []
        by = tf.where(coef < 1.0, coef, tf.ones_like(coef))  # 1.0 leaves a number as it is
        if traced_for_xla():  # it fuses this into what reads the leaves, and is slow with stacks
            return _shrunk_each(
                leaves, [by[i] for i in range(len(leaves))] if by.shape.rank else by
            )
        return _scaled_by_graph(leaves, by)

    def computed_once(self, x: tf.Tensor) -> tf.Tensor:
        return x

    def cleaned(self, leaf: tf.Tensor) -> tf.Tensor:
        return tf.where(tf.math.is_finite(leaf), leaf, tf.zeros_like(leaf))

    def size(self, leaf: tf.Tensor) -> int:
        return int(leaf.shape.num_elements() or 0)


def _scaled_by_graph(leaves: Sequence[tf.Tensor], by: tf.Tensor) -> list[tf.Tensor]:
    """Leaves of one size as rows of a matrix, in a conditional: few nodes, and often no write."""
    groups = classes(leaves, range(len(leaves)))
    pieces = [_rows([leaves[i] for i in alike]) for alike in groups]
    factors = [_factor(by, alike) for alike in groups] if by.shape.rank else by
    scaled = tf.cond(
        tf.reduce_any(by < 1.0), lambda: _fused(pieces)(pieces, factors), lambda: pieces
    )
    done: dict[int, tf.Tensor] = {}
    for alike, piece in zip(groups, scaled, strict=True):
        done |= zip(alike, _apart(piece, [leaves[i] for i in alike]), strict=True)
    return [done[i] for i in range(len(leaves))]


def _rows(alike: Sequence[tf.Tensor]) -> tf.Tensor:
    return tf.stack([flat(leaf) for leaf in alike]) if len(alike) > 1 else alike[0]


def _apart(rows: tf.Tensor, alike: Sequence[tf.Tensor]) -> list[tf.Tensor]:
    """What `_rows` joined."""
    if len(alike) == 1:
        return [rows]
    vectors = zip(tf.unstack(rows, len(alike)), alike, strict=True)
    return [v if leaf.shape.rank == 1 else tf.reshape(v, leaf.shape) for v, leaf in vectors]


def _factor(by: tf.Tensor, alike: Sequence[int]) -> tf.Tensor:
    return tf.gather(by, alike)[:, None] if len(alike) > 1 else by[alike[0]]


def _fused(
    pieces: Sequence[tf.Tensor],
) -> Shrinking:
    """`_shrunk_each`, in a graph compiled by XLA: in one pass over each piece.

    A graph by itself would write each piece to memory in float64, twice.
    """
    shapes_known = all(piece.shape.is_fully_defined() for piece in pieces)
    if tf.executing_eagerly() or not (shapes_known and tf.test.is_built_with_xla()):
        return _shrunk_each
    compiled: Shrinking = tf.function(_shrunk_each, jit_compile=True, autograph=False)
    return compiled


def _shrunk_each(
    leaves: Sequence[tf.Tensor], factors: Sequence[tf.Tensor] | tf.Tensor
) -> list[tf.Tensor]:
    """Leaves by one factor, or each by its own of a list."""
    by = factors if isinstance(factors, list) else [factors] * len(leaves)
    return [_shrunk(leaf, factor) for leaf, factor in zip(leaves, by, strict=True)]


def _shrunk(leaf: tf.Tensor, coef: tf.Tensor) -> tf.Tensor:
    wide = widen(leaf)
    return narrow(wide * tf.cast(coef, wide.dtype), leaf.dtype)


def densified(gradient: Gradient) -> tf.Tensor:
    """A gradient as a dense tensor; the duplicates of IndexedSlices are added up."""
    if isinstance(gradient, tf.IndexedSlices):
        return tf.math.unsorted_segment_sum(
            gradient.values, gradient.indices, tf.cast(gradient.dense_shape[0], tf.int32)
        )
    return tf.convert_to_tensor(gradient)


def merged(gradient: Gradient) -> Gradient:
    """IndexedSlices with every index once, and what is in their place in the norm: the values."""
    if not isinstance(gradient, tf.IndexedSlices):
        return tf.convert_to_tensor(gradient)
    unique, places = tf.unique(gradient.indices)
    values = tf.math.unsorted_segment_sum(gradient.values, places, tf.size(unique))
    return tf.IndexedSlices(values, unique, gradient.dense_shape)


def relike(gradient: Gradient, leaf: tf.Tensor) -> Gradient:
    """New elements, of what `merged` returned, in the form of a gradient."""
    if not isinstance(gradient, tf.IndexedSlices):
        return leaf
    return tf.IndexedSlices(leaf, merged(gradient).indices, gradient.dense_shape)
