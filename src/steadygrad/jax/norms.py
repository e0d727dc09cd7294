"""Norms of the leaves of a pytree, exact and in about the time of an inexact one.

On one CPU the C core reads them (`native.py`); what follows is the form for everywhere else.

XLA sums float32 squares in a tree, which is good to a few 1e-8 as long as no
square leaves the range of float32. So a large leaf is summed in float32, its sum
is tested, and only a sum that fails the test is taken again, in float64, inside
a `lax.cond`. Small leaves are many and light: they are gathered into one matrix a
size class, a copy of their bytes, and summed in float64 at once, since XLA's
compile time grows with the number of reductions.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from steadygrad.jax import native
from steadygrad.jax._x64 import widen
from steadygrad.jax.native import SMALL

_LOST = 2.0**-126
"""The most that one float32 square can lose by being flushed to zero."""

_WORTH = 2.0**25
"""A sum this many times larger than its possible loss is right to 3e-8."""

MANY = 256
"""Figures from which a gather is used: slices would be long in compiling."""

Figures = tuple[Array, Array]
_DTYPES = (jnp.float64, jnp.int32)


def leaf_norms(leaves: Sequence[Array], norm_type: float = 2.0) -> Figures:
    """p-norm and number of non-finite elements of each leaf; call it inside `wide`.

    Args:
        leaves: floating or complex arrays.
        norm_type: p >= 0.5, or inf.

    Returns:
        ``norms`` float64 and ``nonfinite`` int32, both ``[leaves]``. The norm of a leaf
        that holds NaN is NaN, else inf if it holds inf.
    """
    if native.serves(leaves):
        norms, _, nonfinite, _ = native.read(leaves, norm_type, plain_figures)
        return norms, nonfinite
    return plain_norms(leaves, norm_type)


def leaf_figures(
    leaves: Sequence[Array], norm_type: float = 2.0, one_by_one: bool = False
) -> native.Figures:
    """`leaf_norms`, and the largest finite magnitude and number of zeros of each leaf.

    Args:
        leaves: floating or complex arrays.
        norm_type: p >= 0.5, or inf.
        one_by_one: large leaves are not needed behind this: they are read singly, which takes
            longer to compile.

    Returns:
        ``norms`` and ``max_abs`` float64, ``nonfinite`` and ``zeros`` int32, ``[leaves]`` each.
    """
    if native.serves(leaves):
        read = _read_singly if one_by_one else native.read
        return read(leaves, norm_type, plain_figures)
    return plain_figures(leaves, norm_type)


def _read_singly(
    leaves: Sequence[Array], norm_type: float, plain: Callable[..., native.Figures]
) -> native.Figures:
    """`native.read` of small leaves together, and of each large one by itself.

    What one call reads XLA keeps until all of it is there. Called leaf by leaf, it has a gradient
    read while the cache holds it, and puts the next one where that was.
    """
    small = [i for i, leaf in enumerate(leaves) if leaf.size <= SMALL]
    large = [[i] for i, leaf in enumerate(leaves) if leaf.size > SMALL]
    calls = [small, *large] if small else large
    parts = [native.read([leaves[i] for i in call], norm_type, plain) for call in calls]
    if len(parts) == 1:
        return parts[0]
    places = jnp.asarray(np.argsort([i for call in calls for i in call]))
    norms, max_abs, nonfinite, zeros = (
        jnp.concatenate(column)[places] for column in zip(*parts, strict=True)
    )
    return norms, max_abs, nonfinite, zeros


def plain_figures(leaves: Sequence[Array], norm_type: float) -> native.Figures:
    """`leaf_figures` in XLA's own operations."""
    norms, nonfinite = plain_norms(leaves, norm_type)
    max_abs, zeros = plain_extremes(leaves)
    return norms, max_abs, nonfinite, zeros


def plain_norms(leaves: Sequence[Array], norm_type: float) -> Figures:
    """`leaf_norms` in XLA's own operations."""

    def small(rows: Array) -> Figures:
        return _exact_norms(rows, norm_type)

    def large(row: Array) -> Figures:
        if norm_type != 2.0 or row.dtype == jnp.float64:
            return _exact_norms(row, norm_type)
        return _tested_norm(row)

    return _by_size(leaves, small, large)


def plain_extremes(leaves: Sequence[Array]) -> Figures:
    """Largest finite magnitude and number of zeros of each leaf, in XLA's own operations."""

    def figures(rows: Array) -> Figures:
        size = jnp.abs(rows)
        finite = jnp.where(jnp.isfinite(size), size, jnp.zeros_like(size))
        largest = jnp.max(finite, axis=-1, initial=0)
        return largest, jnp.sum(rows == 0, axis=-1, dtype=jnp.int32)

    max_abs, zeros = _by_size(leaves, figures, figures)
    padding = [_width(leaf.size) - leaf.size if leaf.size <= SMALL else 0 for leaf in leaves]
    return max_abs, zeros - jnp.asarray(padding, jnp.int32)


def _exact_norms(rows: Array, norm_type: float) -> Figures:
    """p-norms over the last axis in float64, scaled where squares could leave its range."""
    size = jnp.abs(widen(rows))
    nonfinite = jnp.sum(~jnp.isfinite(size), axis=-1, dtype=jnp.int32)
    if norm_type == 2.0 and rows.dtype != jnp.float64:
        return jnp.sqrt(jnp.sum(size * size, axis=-1)), nonfinite
    largest = jnp.max(size, axis=-1, initial=0)
    largest = jnp.where(nonfinite > 0, jnp.sum(size, axis=-1), largest)  # a NaN wins over inf
    if norm_type == float("inf"):
        return largest, nonfinite
    usable = jnp.isfinite(largest) & (largest > 0)
    ratios = size / jnp.where(usable, largest, 1.0)[..., None]
    joined = largest * jnp.sum(ratios**norm_type, axis=-1) ** (1.0 / norm_type)
    return jnp.where(usable, joined, largest), nonfinite


def _tested_norm(row: Array) -> Figures:
    """2-norm of one large row summed in float32, and once more in float64 if that cannot hold."""
    total = jnp.sum(jnp.square(lax.convert_element_type(row, jnp.float32)))
    holds = jnp.isfinite(total)
    if row.dtype != jnp.float16:  # no square of a float16 is under 2**-48
        holds &= total >= row.size * _LOST * _WORTH
    figures: Figures = lax.cond(
        holds,
        # a plain 0 would not vary over a mesh axis as the other branch's count does
        lambda _: (jnp.sqrt(widen(total)), (total != total).astype(jnp.int32)),
        lambda values: _exact_norms(values, 2.0),
        row,
    )
    return figures


def _by_size(
    leaves: Sequence[Array], small: Callable[[Array], Figures], large: Callable[[Array], Figures]
) -> Figures:
    """`small` on the rows of every size class and `large` on each large leaf, in leaf order."""
    rows = [jnp.reshape(_real(leaf), (-1,)) for leaf in leaves]
    order: list[int] = []
    parts: list[Figures] = []
    for (_, width), indices in _classes(rows).items():
        # without barriers XLA fuses all of a class into each reader: compile time squared
        matrix = jnp.stack([_padded(rows[i], width) for i in indices])
        parts.append(small(lax.optimization_barrier(matrix)))
        order += indices
    for index, row in enumerate(rows):
        if row.size > SMALL:
            first, second = large(row)
            parts.append((first[None], second[None]))
            order.append(index)
    if not order:
        return jnp.zeros((0,), _DTYPES[0]), jnp.zeros((0,), _DTYPES[1])
    places = sorted(range(len(order)), key=order.__getitem__)
    first, second = (
        ordered(
            jnp.concatenate([lax.convert_element_type(pair[k], _DTYPES[k]) for pair in parts]),
            places,
        )
        for k in (0, 1)
    )
    return first, second


def ordered(figures: Array, places: list[int]) -> Array:
    """Figures at these places; few by slices, since a gather's derivative asks JAX for float64.

    Args:
        figures: ``[n]``.
        places: which of them, in order.

    Returns:
        ``[places]``.
    """
    if places == list(range(figures.shape[0])):
        return figures
    if len(places) > MANY:
        return figures[jnp.asarray(places)]
    return jnp.concatenate([lax.slice(figures, (i,), (i + 1,)) for i in places])


def _real(leaf: Array) -> Array:
    return jnp.abs(widen(leaf)) if jnp.iscomplexobj(leaf) else jnp.asarray(leaf)


def _classes(rows: Sequence[Array]) -> dict[tuple[Array, int], list[int]]:
    """Small rows by dtype and by size rounded up to a power of two."""
    classes: dict[tuple[Array, int], list[int]] = defaultdict(list)
    for index, row in enumerate(rows):
        if row.size <= SMALL:
            classes[row.dtype, _width(row.size)].append(index)
    return classes


def _width(size: int) -> int:
    return 1 << max(0, size - 1).bit_length()


def _padded(row: Array, width: int) -> Array:
    """Zeros appended up to the class's width: they change no norm."""
    if row.size == width:
        return row
    return lax.optimization_barrier(jnp.pad(row, (0, width - row.size)))
