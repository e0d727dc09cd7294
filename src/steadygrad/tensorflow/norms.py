"""Norms of tensors, exact and in about the time of an inexact one.

A row of a thousand float32 squares sums to a few 1e-8 in any order, as long as no square
leaves the range of float32. So each large tensor is summed in float32 rows and the sum is
tested; only where one fails the test are all taken again, in float64, inside a `tf.cond`.
(Summed whole in float32, XLA's CPU loops are off by 3e-4 on 38 M elements.)
Small tensors are summed in float64 at once: they weigh little, and are often all zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from steadygrad.tensorflow.rounding import widen

SMALL = 1 << 12
"""Tensors of up to this many elements are summed in float64 without a test."""

ROW = 1 << 10
"""Large tensors are summed in float32 over rows this long, and the rows' sums in float64."""

_LOST = 2.0**-126
_WORTH = 2.0**25


def leaf_norms(leaves: Sequence[Any], norm_type: float = 2.0) -> tuple[Any, Any]:
    """p-norm and number of non-finite elements of each tensor.

    Args:
        leaves: dense floating or complex tensors of any shape.
        norm_type: p >= 0.5, or inf.

    Returns:
        ``norms`` float64 and ``nonfinite`` int64, both ``[leaves]``. The norm of a tensor
        that holds NaN is NaN, else inf if it holds inf.
    """
    if not leaves:
        return tf.zeros((0,), tf.float64), tf.zeros((0,), tf.int64)
    exact = [_exact_norm(x, norm_type) if _is_exact(x, norm_type) else None for x in leaves]
    tested = [x for x, done in zip(leaves, exact, strict=True) if done is None]
    rest = iter(zip(*_tested_norms(tested), strict=True) if tested else ())
    pairs = [next(rest) if done is None else done for done in exact]
    return tf.stack([norm for norm, _ in pairs]), tf.stack([count for _, count in pairs])


def leaf_extremes(leaves: Sequence[Any]) -> tuple[Any, Any]:
    """Largest finite magnitude and number of zeros of each tensor.

    Args:
        leaves: dense floating or complex tensors.

    Returns:
        ``max_abs`` float64 and ``zeros`` int64, both ``[leaves]``.
    """
    if not leaves:
        return tf.zeros((0,), tf.float64), tf.zeros((0,), tf.int64)
    largest, zeros = [], []
    for leaf in leaves:
        size = tf.abs(leaf)
        finite = tf.where(tf.math.is_finite(size), size, tf.zeros_like(size))
        padded = tf.concat([tf.reshape(finite, (-1,)), tf.zeros((1,), size.dtype)], 0)
        largest.append(tf.cast(tf.reduce_max(padded), tf.float64))
        zeros.append(tf.reduce_sum(tf.cast(size == 0, tf.int64)))
    return tf.stack(largest), tf.stack(zeros)


def _is_exact(leaf: Any, norm_type: float) -> bool:
    single = leaf.dtype in (tf.float32, tf.bfloat16, tf.float16)
    large = leaf.shape.num_elements() is None or leaf.shape.num_elements() > SMALL
    return norm_type != 2.0 or not single or not large


def _exact_norm(leaf: Any, norm_type: float) -> tuple[Any, Any]:
    """p-norm in float64, scaled where powers could leave its range."""
    size = tf.abs(tf.reshape(widen(leaf), (-1,)))
    nonfinite = tf.reduce_sum(tf.cast(~tf.math.is_finite(size), tf.int64))
    if norm_type == 2.0 and leaf.dtype in (tf.float32, tf.bfloat16, tf.float16):
        return tf.sqrt(tf.reduce_sum(size * size)), nonfinite
    largest = tf.reduce_max(tf.concat([size, tf.zeros((1,), tf.float64)], 0))
    largest = tf.where(nonfinite > 0, tf.reduce_sum(size), largest)  # a NaN wins over inf
    if norm_type == float("inf"):
        return largest, nonfinite
    usable = tf.math.is_finite(largest) & (largest > 0)
    ratios = size / tf.where(usable, largest, tf.ones_like(largest))
    joined = largest * tf.reduce_sum(ratios**norm_type) ** (1.0 / norm_type)
    return tf.where(usable, joined, largest), nonfinite


def _tested_norms(leaves: Sequence[Any]) -> tuple[list[Any], list[Any]]:
    """2-norms of large tensors by float32 sums, and all again in float64 if one cannot hold."""
    sums = tf.stack([_row_sums(leaf) for leaf in leaves])
    sizes = tf.stack([tf.cast(tf.size(leaf), tf.float64) for leaf in leaves])
    holds = tf.math.is_finite(sums) & (sums >= sizes * (_LOST * _WORTH))

    def fast() -> tuple[Any, Any]:
        return tf.sqrt(sums), tf.zeros(sums.shape, tf.int64)

    def slow() -> tuple[Any, Any]:
        pairs = [_exact_norm(leaf, 2.0) for leaf in leaves]
        return tf.stack([norm for norm, _ in pairs]), tf.stack([count for _, count in pairs])

    norms, nonfinite = tf.cond(tf.reduce_all(holds), fast, slow)
    return tf.unstack(norms, len(leaves)), tf.unstack(nonfinite, len(leaves))


def _row_sums(leaf: Any) -> Any:
    """Sum of squares: in float32 along rows, right to 1e-7 even under XLA's plain loops."""
    flat = tf.cast(tf.reshape(leaf, (-1,)), tf.float32)
    size = flat.shape.num_elements()
    whole = (tf.size(flat) if size is None else size) // ROW * ROW  # XLA wants static shapes
    rows = tf.reduce_sum(tf.square(tf.reshape(flat[:whole], (-1, ROW))), 1)
    tail = tf.reduce_sum(tf.square(tf.cast(flat[whole:], tf.float64)))
    return tf.reduce_sum(tf.cast(rows, tf.float64)) + tail
