"""What adaptive methods remember: a ring of figures, and a sketch of a whole history.

Written with masks in place of indexed writes, and with quantiles read off sorted
arrays of fixed length, because the same lines must run eagerly and under tracers
that know neither growing arrays nor assignment.
"""

from __future__ import annotations

import math
from typing import Any

LOWEST = -800.0
"""Under the log of every positive float64: the value of ring places not yet written."""


def log_of(xp: Any, norm: Any, usable: Any) -> Any:
    """Log of ``norm`` where ``usable``, else 0, without ever taking a bad logarithm."""
    return xp.log(xp.where(usable, norm, xp.ones_like(norm)))


def push(xp: Any, ring: Any, count: Any, value: Any) -> Any:
    """``ring`` with its oldest entry replaced by ``value``; ``count`` entries came before."""
    size = ring.shape[0]
    place = xp.astype(xp.arange(size), count.dtype)
    return xp.where(place == count % size, value, ring)


def ordered(xp: Any, ring: Any, count: Any) -> Any:
    """The written entries, rising; the places behind them repeat the largest.

    Places not yet written must hold less than any entry.
    """
    place = xp.astype(xp.arange(ring.shape[0]), count.dtype)
    return xp.sort(xp.where(place < count, ring, xp.max(ring)))


def quantile(xp: Any, rising: Any, count: Any, q: float) -> Any:
    """Quantile of the first ``count`` entries, interpolated linearly as NumPy does; 0-d.

    Args:
        xp: array namespace.
        rising: `ordered`'s result, ``[size]``.
        count: 0-d integer; more than ``size`` means all.
        q: 0 to 1.
    """
    full = xp.full_like(count, rising.shape[0])
    last = xp.maximum(xp.minimum(count, full) - 1, xp.zeros_like(count))
    position = xp.astype(last, rising.dtype) * q
    low = xp.floor(position)
    index = xp.astype(low, count.dtype)
    pair = xp.take(rising, xp.stack([index, xp.minimum(index + 1, last)]), axis=0)
    return pair[0] + (position - low) * (pair[1] - pair[0])


BINS_PER_OCTAVE = 256
OCTAVES = 64
BINS = BINS_PER_OCTAVE * OCTAVES
TOLERANCE = 2 ** (1 / BINS_PER_OCTAVE) - 1
"""Largest relative error of a sketched quantile: a bin, 0.271 % (half of one but for ties)."""

_BIN = math.log(2.0) / BINS_PER_OCTAVE


def bin_of(xp: Any, log_norm: Any, origin: Any, like: Any) -> Any:
    """Number of a log norm's bin, an integer of ``like``'s dtype; the end bins catch the rest."""
    place = xp.floor((log_norm - origin) / _BIN) + BINS // 2
    return xp.astype(xp.clip(place, 0.0, float(BINS - 1)), like.dtype)


def bin_middle(xp: Any, number: Any, origin: Any) -> Any:
    """Log of the middle of a bin."""
    return origin + (xp.astype(number, origin.dtype) - (BINS // 2 - 0.5)) * _BIN


def bin_add(xp: Any, cumulative: Any, number: Any) -> Any:
    """The sketch with one more entry: ``cumulative[i]`` counts the entries in bins up to i.

    Kept cumulative, so that a quantile is a binary search and no sum.
    """
    place = xp.astype(xp.arange(BINS), cumulative.dtype)
    return cumulative + xp.astype(place >= number, cumulative.dtype)
