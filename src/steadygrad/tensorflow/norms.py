"""Norms of tensors, exact and in about the time of an inexact one.

The norm of a row of a thousand float32 numbers has come out right to 3e-7 in any order of
summing (measured with all of them alike, the worst found), as long as no square leaves the
range of float32. So each large tensor is summed in float32 rows and the sum is tested; only
where one fails the test are all taken again, in float64, inside a `tf.cond`. Under XLA they are
summed in float64 at once, which takes no longer there.
(Summed whole in float32, XLA's CPU loops are off by 3e-4 on 38 M elements.)
Small tensors are summed in float64 at once: they weigh little, and are often all zero.
Those of one size are stacked first, since an operation takes longer to trace than to run.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf

from steadygrad.tensorflow.rounding import narrow, widen
from steadygrad.tensorflow.tracing import traced_for_xla

SMALL = 1 << 12
"""Tensors of up to this many elements are summed in float64 without a test."""

ROW = 1 << 10
"""Large tensors are summed in float32 over rows this long, and the rows' sums in float64."""

STACK = 128
"""So many small tensors are stacked at most: XLA compiles the norms of 4096 in 12 s as one stack,
and in 2 s as these."""

XLA_ROW = 32
"""XLA sums so many elements in one loop."""

_LOST = 2.0**-126
_WORTH = 2.0**25

Figures = tuple[tf.Tensor, tf.Tensor]


def leaf_norms(leaves: Sequence[tf.Tensor], norm_type: float = 2.0, counts: bool = True) -> Figures:
    """p-norm and number of non-finite elements of each tensor.

    Args:
        leaves: dense floating or complex tensors of any shape.
        norm_type: p >= 0.5, or inf.
        counts: False leaves the numbers out (they are 0), which is quicker to trace and compile.

    Returns:
        ``norms`` float64 and ``nonfinite`` int64, both ``[leaves]``. The norm of a tensor
        that holds NaN is NaN, else inf if it holds inf.
    """
    single = [i for i, leaf in enumerate(leaves) if norm_type == 2.0 and _is_single(leaf)]
    large = [i for i in single if not is_small(leaves[i])]
    parts = [_large_norms([leaves[i] for i in large], counts)] if large else []
    rest = sorted(set(range(len(leaves))) - set(large))
    return _by_rows(leaves, rest, lambda rows: _exact_norms(rows, norm_type, counts), large, parts)


def leaf_extremes(leaves: Sequence[tf.Tensor]) -> Figures:
    """Largest finite magnitude and number of zeros of each tensor.

    Args:
        leaves: dense floating or complex tensors.

    Returns:
        ``max_abs`` float64 and ``zeros`` int64, both ``[leaves]``.
    """

    def extremes(rows: tf.Tensor) -> Figures:
        size = tf.abs(rows)
        finite = tf.where(tf.math.is_finite(size), size, tf.zeros_like(size))
        largest = tf.cast(_largest(finite), tf.float64)
        return largest, tf.reduce_sum(tf.cast(tf.equal(size, 0), tf.int64), 1)

    return _by_rows(leaves, range(len(leaves)), extremes, [], [])


def _by_rows(
    leaves: Sequence[tf.Tensor],
    places: Sequence[int],
    figures: Callable[[tf.Tensor], Figures],
    order: list[int],
    parts: list[Figures],
) -> Figures:
    """Figures of the leaves at ``places``, joined to those ``found`` and put in leaf order."""
    if not leaves:
        return tf.zeros((0,), tf.float64), tf.zeros((0,), tf.int64)
    for alike in classes(leaves, places):
        parts = [*parts, figures(tf.stack([flat(leaves[i]) for i in alike]))]
        order = [*order, *alike]
    to_leaf = np.argsort(order)
    first, second = (
        tf.gather(tf.concat(column, 0), to_leaf) for column in zip(*parts, strict=True)
    )
    return first, second


def classes(leaves: Sequence[tf.Tensor], places: Sequence[int]) -> list[list[int]]:
    """Places of small leaves of one dtype and size together, up to `STACK`; of others, alone.

    Args:
        leaves: dense tensors.
        places: which of them.

    Returns:
        Lists of places.
    """
    alike: dict[tuple[tf.DType, int] | int, list[int]] = defaultdict(list)
    for place in places:
        leaf = leaves[place]
        key = (leaf.dtype, leaf.shape.num_elements()) if is_small(leaf) else place
        alike[key].append(place)
    rows = alike.values()
    return [full[i : i + STACK] for full in rows for i in range(0, len(full), STACK)]


def flat(leaf: tf.Tensor) -> tf.Tensor:
    """A tensor as a vector; a node costs more to trace than this test."""
    return leaf if leaf.shape.rank == 1 else tf.reshape(leaf, (-1,))


def is_small(leaf: tf.Tensor) -> bool:
    """Whether a tensor is known to hold `SMALL` elements or fewer."""
    size = leaf.shape.num_elements()
    return size is not None and size <= SMALL


def _is_single(leaf: tf.Tensor) -> bool:
    return leaf.dtype in (tf.float32, tf.bfloat16, tf.float16)


def _largest(rows: tf.Tensor) -> tf.Tensor:
    """The largest of each row, 0 for an empty one."""
    return tf.reduce_max(tf.pad(rows, [[0, 0], [0, 1]]), 1)


def _exact_norms(rows: tf.Tensor, norm_type: float, counts: bool) -> Figures:
    """p-norms of rows in float64, scaled where powers could leave its range."""
    wide = widen(rows)
    if norm_type == 2.0 and _is_single(rows):
        norms = tf.sqrt(tf.reduce_sum(wide * wide, 1))
        return norms, _broken_elements(rows) if counts else tf.zeros_like(norms, tf.int64)
    size, nonfinite = tf.abs(wide), _broken_elements(wide)
    largest = _largest(size)
    largest = tf.where(nonfinite > 0, tf.reduce_sum(size, 1), largest)  # a NaN wins over inf
    if norm_type == float("inf"):
        return largest, nonfinite
    usable = tf.math.is_finite(largest) & (largest > 0)
    ratios = size / tf.where(usable, largest, tf.ones_like(largest))[:, None]
    joined = largest * tf.reduce_sum(ratios**norm_type, 1) ** (1.0 / norm_type)
    return tf.where(usable, joined, largest), nonfinite


def _large_norms(leaves: Sequence[tf.Tensor], counts: bool) -> Figures:
    """2-norms of large tensors."""

    @tf.custom_gradient  # type: ignore[untyped-decorator]
    def norms_of(*leaves: tf.Tensor) -> tf.Tensor:
        if traced_for_xla():
            norms, nonfinite = _finished(leaves, _double_sums(leaves), counts)
        else:
            norms, nonfinite = _tested_sums(leaves, counts)
        return (norms, nonfinite), lambda by, _: _pulled(leaves, norms, by)

    norms, nonfinite = norms_of(*leaves)
    return norms, nonfinite


def _tested_sums(leaves: Sequence[tf.Tensor], counts: bool) -> Figures:
    """Norms by float32 sums, and all again in float64 if one of them cannot hold.

    XLA has no `EuclideanNorm`. Where it compiles what was traced for a graph, the float32 sums
    are 0, which cannot hold.
    """
    place = tf.raw_ops.DeviceIndex(device_names=["CPU", "GPU"])
    zero, one = tf.constant(0), tf.constant(1)
    branch = tf.switch_case(place, {0: lambda: zero, 1: lambda: zero}, default=lambda: one)
    sums = tf.switch_case(
        branch,
        {0: lambda: _row_sums(leaves)},
        default=lambda: tf.zeros((len(leaves),), tf.float64),
    )
    sizes = [leaf.shape.num_elements() for leaf in leaves]
    if None in sizes:
        sizes = [tf.size(leaf, tf.int64) for leaf in leaves]
    least = tf.cast(tf.stack(sizes), tf.float64) * (_LOST * _WORTH)
    holds = tf.math.is_finite(sums) & (sums >= least)

    def slow() -> Figures:
        again = 2.0 * tf.stack([tf.nn.l2_loss(tf.cast(leaf, tf.float64)) for leaf in leaves])
        return _finished(leaves, again, counts)

    norms, nonfinite = tf.cond(tf.reduce_all(holds), lambda: _finished(leaves, sums, False), slow)
    return norms, nonfinite


def _finished(leaves: Sequence[tf.Tensor], sums: tf.Tensor, counts: bool) -> Figures:
    """Norms from float64 sums, in which no square leaves the range: only a NaN or inf can."""

    def none_broken() -> tf.Tensor:
        return tf.zeros((len(leaves),), tf.int64)

    def broken() -> tf.Tensor:
        return tf.stack([_broken_elements(tf.reshape(leaf, (1, -1)))[0] for leaf in leaves])

    if not counts:
        return tf.sqrt(sums), none_broken()
    usual = tf.reduce_all(tf.math.is_finite(sums))
    return tf.sqrt(sums), tf.cond(usual, none_broken, broken)


def _pulled(leaves: Sequence[tf.Tensor], norms: tf.Tensor, upstream: tf.Tensor) -> list[tf.Tensor]:
    """The gradient of 2-norms; 0 at zero, where the norm of a row that is zero would give NaN."""
    by = tf.where(norms > 0, upstream / norms, tf.zeros_like(norms))
    return [narrow(widen(leaf) * by[i], leaf.dtype) for i, leaf in enumerate(leaves)]


def _double_sums(leaves: Sequence[tf.Tensor]) -> tf.Tensor:
    """Sums of squares in float64, for XLA: it converts and sums in one pass.

    XLA cuts longer sums than 32 itself, and then writes the squares to memory.
    """
    sizes = [leaf.shape.num_elements() for leaf in leaves]
    if None in sizes:
        return tf.stack([tf.reduce_sum(_square(leaf)) for leaf in leaves])
    rows = [_padded_rows(leaf, size) for leaf, size in zip(leaves, sizes, strict=True)]
    first = tf.concat([tf.reduce_sum(_square(r), 1) for r in rows], 0)
    second = tf.reduce_sum(_cut(first, XLA_ROW), 1)
    counts = [r.shape[0] // XLA_ROW for r in rows]
    return _joined(second, range(len(rows)), counts, len(leaves))


def _square(x: tf.Tensor) -> tf.Tensor:
    return tf.square(tf.cast(x, tf.float64))


def _padded_rows(leaf: tf.Tensor, size: int) -> tf.Tensor:
    """A tensor in rows of `XLA_ROW`, as many of them as make whole sums of their sums."""
    missing = -size % XLA_ROW**2
    if missing:
        leaf = tf.pad(flat(leaf), [[0, missing]])
    return _cut(leaf, XLA_ROW)


def _row_sums(leaves: Sequence[tf.Tensor]) -> tf.Tensor:
    """Sums of squares in float32 along rows, joined in float64 at once: few nodes a tensor.

    `EuclideanNorm` squares and sums in one pass, where a graph's square by itself goes
    through memory.
    """
    pieces = [(i, rows) for i, leaf in enumerate(leaves) for rows in _rows_of(leaf)]
    norms = tf.concat([tf.raw_ops.EuclideanNorm(input=r, axis=-1) for _, r in pieces], 0)
    squares = tf.square(tf.cast(norms, tf.float64))
    counts = [tf.shape(r)[0] if r.shape[0] is None else r.shape[0] for _, r in pieces]
    return _joined(squares, [place for place, _ in pieces], counts, len(leaves))


def _rows_of(leaf: tf.Tensor) -> list[tf.Tensor]:
    """A tensor in float32 rows that fit it, where there are such; else the rest by itself."""
    leaf = tf.cast(leaf, tf.float32)
    last, size = leaf.shape[-1] or 0, leaf.shape.num_elements()
    if not ROW // 16 <= last <= ROW:
        last = 0 if size is None else _row_length(size)
    if last:
        return [leaf if leaf.shape.rank == 2 and leaf.shape[-1] == last else _cut(leaf, last)]
    line = flat(leaf)
    whole = (tf.size(line) if size is None else size) // ROW * ROW
    return [_cut(line[:whole], ROW), line[None, whole:]]


def _joined(
    sums: tf.Tensor, places: Sequence[int], counts: Sequence[tf.Tensor], tensors: int
) -> tf.Tensor:
    """Sums of rows, added up for each tensor; a piece at a place has so many rows."""
    counts_known = all(isinstance(count, int) for count in counts)
    owners = (
        np.repeat(places, counts).astype(np.int32) if counts_known else tf.repeat(places, counts)
    )
    return tf.math.unsorted_segment_sum(sums, owners, tensors)


def _broken_elements(rows: tf.Tensor) -> tf.Tensor:
    whole = tf.abs(rows) if rows.dtype.is_complex else rows
    return tf.reduce_sum(tf.cast(~tf.math.is_finite(whole), tf.int64), 1)


def _row_length(size: int) -> int:
    """The longest row into which so many elements can be cut whole; 0 where all are short."""
    return next((n for n in range(ROW, ROW // 16 - 1, -1) if size % n == 0), 0)


def _cut(leaf: tf.Tensor, length: int) -> tf.Tensor:
    return tf.reshape(leaf, (-1, length))
