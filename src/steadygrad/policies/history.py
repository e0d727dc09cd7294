"""What adaptive methods remember: a ring of figures, and a sketch of a whole history.

Written with masks in place of indexed writes, and with quantiles read off sorted
arrays of fixed length, because the same lines must run eagerly and under tracers
that know neither growing arrays nor assignment.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from steadygrad.policies.wide import cast

if TYPE_CHECKING:
    from steadygrad.typing import Array, Namespace

LOWEST = -800.0
"""Under the log of every positive float64: the value of ring places not yet written."""


def log_of(xp: Namespace, norm: Array, usable: Array) -> Array:
    """Log of ``norm`` where ``usable``, else 0, without ever taking a bad logarithm."""
    return xp.log(xp.where(usable, norm, xp.ones_like(norm)))


def push(xp: Namespace, ring: Array, count: Array, value: Array) -> Array:
    """``ring`` with its oldest entry replaced by ``value``; ``count`` entries came before."""
    size = ring.shape[0]
    place = cast(xp, xp.arange(size), count.dtype)
    return xp.where(place == count % size, value, ring)


def quantiles(xp: Namespace, ring: Array, count: Array, *qs: float) -> list[Array]:
    """Quantiles of the written entries, interpolated linearly as NumPy does; 0-d each.

    Several at once, because in eager NumPy a call costs more than its arithmetic.

    Args:
        xp: array namespace.
        ring: entries, ``[size]``; places not yet written hold less than any entry.
        count: 0-d integer, how many were ever written.
        qs: 0 to 1.
    """
    rising = xp.sort(ring)  # what is not written stands in front
    size = ring.shape[0]
    unwritten = xp.maximum(size - count, count * 0)
    last = size - 1 + count * 0
    span = xp.maximum(last - unwritten, count * 0)
    shares, places = [], []
    for q in qs:
        position = cast(xp, span, ring.dtype) * q
        low = xp.floor(position)
        index = xp.minimum(unwritten + cast(xp, low, count.dtype), last)
        shares.append(position - low)
        places += [index, xp.minimum(index + 1, last)]
    ends = xp.take(rising, xp.stack(places), axis=0)
    return [ends[2 * i] + share * (ends[2 * i + 1] - ends[2 * i]) for i, share in enumerate(shares)]


BINS_PER_OCTAVE = 256
OCTAVES = 64
BINS = BINS_PER_OCTAVE * OCTAVES
TOLERANCE = 2 ** (1 / BINS_PER_OCTAVE) - 1
"""Largest relative error of a sketched quantile: a bin, 0.271 % (half of one but for ties)."""

_BIN = math.log(2.0) / BINS_PER_OCTAVE


def bin_of(xp: Namespace, log_norm: Array, origin: Array, like: Array) -> Array:
    """Number of a log norm's bin, an integer of ``like``'s dtype; the end bins catch the rest."""
    place = xp.floor((log_norm - origin) / _BIN) + BINS // 2
    return cast(xp, xp.clip(place, 0.0, float(BINS - 1)), like.dtype)


def bin_middle(xp: Namespace, number: Array, origin: Array) -> Array:
    """Log of the middle of a bin."""
    return origin + (cast(xp, number, origin.dtype) - (BINS // 2 - 0.5)) * _BIN


def bin_add(xp: Namespace, cumulative: Array, number: Array) -> Array:
    """The sketch with one more entry: ``cumulative[i]`` counts the entries in bins up to i.

    Kept cumulative, so that a quantile is a binary search and no sum.
    """
    place = cast(xp, xp.arange(BINS), cumulative.dtype)
    return cumulative + cast(xp, place >= number, cumulative.dtype)
