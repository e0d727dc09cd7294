"""Statistics that a few outliers do not move: medians, spreads about them, and spikes.

One definition of each, for rules, calibration and reports. What calibration clips is no spike of
this kind: `steadygrad.calibration.estimate.above_level`. Every function takes time and memory in
proportion to what it is given.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from steadygrad.stats import MAD_TO_SIGMA

Floats = NDArray[np.float64]

ENOUGH = 8
"""Values below which a statistic says nothing."""
TOGETHER = 4096
"""Neighbourhoods that are looked at in one array."""


def median(values: Floats | Sequence[float]) -> float:
    """Median of the finite values; NaN where there are none.

    Example:
        >>> median([1.0, float("nan"), 3.0, 100.0])
        3.0
    """
    array = np.asarray(values, dtype=np.float64)
    finite = array[np.isfinite(array)]
    return float(np.median(finite)) if finite.size else math.nan


def spread(values: Floats | Sequence[float]) -> float:
    """Median absolute deviation, scaled to a standard deviation; of the finite values.

    Example:
        >>> round(spread([1.0, 2.0, 3.0, 4.0, 1000.0]), 4)
        1.4826
    """
    array = np.asarray(values, dtype=np.float64)
    finite = array[np.isfinite(array)]
    return MAD_TO_SIGMA * median(np.abs(finite - median(finite)))


def upper_sigma(values: Floats, middle: float) -> float:
    """Robust standard deviation of the side above the median, where clipping happens.

    Args:
        values: finite, ``[steps]``.
        middle: their median.

    Example:
        >>> round(upper_sigma(np.array([0.0, 1.0, 2.0, 3.0, -900.0]), 1.0), 4)
        2.2239
    """
    above = values[values > middle] - middle
    return MAD_TO_SIGMA * float(np.median(above)) if above.size else 0.0


def spikes(
    norms: Floats,
    ratio: float = 10.0,
    deviations: float = 8.0,
    window: int = 32,
    losses: Floats | None = None,
) -> NDArray[np.int64]:
    """Places where a norm stands far out of the norms around it.

    A spike is `ratio` times the median of its neighbourhood and of the whole run's upper
    tenth's lower edge, and `deviations` robust deviations of the logarithm away: a converged
    run's rare ordinary batch, large against a tiny median alone, is none. Norms of exactly 0
    have no size to compare with, and are left out.

    A spike may throw a training so far that what follows hides it. Where the loss jumps with it,
    it is therefore compared with what came before it alone as well.

    Args:
        norms: finite norms, ``[steps]``.
        ratio: least factor over the median of the neighbours.
        deviations: least distance in the spread of the neighbours' logarithms.
        window: neighbours on each side.
        losses: of the same steps, NaN where unknown; None for none.

    Returns:
        Indices into ``norms``, ascending.

    Example:
        >>> norms = np.ones(50); norms[20] = 100.0
        >>> spikes(norms)
        array([20])
    """
    alive = np.flatnonzero(norms > 0)
    if len(alive) < ENOUGH:
        return np.zeros(0, np.int64)
    logs = np.log(norms[alive])
    usual = float(np.quantile(logs, 0.9))
    candidates = np.flatnonzero(logs > max(usual, median(logs) + math.log(ratio)))
    candidates = candidates[candidates >= ENOUGH]  # a large first step is no spike
    middle, sigma = _neighbourhoods(logs, candidates, window)
    far = logs[candidates] - middle > np.maximum(math.log(ratio), deviations * sigma)
    over = logs[candidates] - usual > math.log(3)
    outlying = far & over
    if losses is not None:
        for index in np.flatnonzero(over & ~far):
            outlying[index] = _throws(logs, losses[alive], int(candidates[index]), window, ratio)
    return np.asarray(alive[candidates[outlying]], np.int64)


def _throws(logs: Floats, losses: Floats, place: int, window: int, ratio: float) -> bool:
    """Whether norm and loss both stand far over all that came shortly before."""
    before, finite_losses = (
        logs[max(0, place - window) : place],
        losses[max(0, place - window) : place],
    )
    finite_losses = finite_losses[np.isfinite(finite_losses)]
    if not finite_losses.size or not losses[place] > max(
        3 * abs(median(finite_losses)), float(finite_losses.max())
    ):
        return False
    return bool(logs[place] - median(before) > math.log(ratio) and logs[place] > before.max())


def _neighbourhoods(logs: Floats, places: NDArray[np.int64], window: int) -> tuple[Floats, Floats]:
    """Median and spread of the up to ``2 * window`` values around each place, without it."""
    middle, sigma = np.zeros(len(places)), np.zeros(len(places))
    inside = (places >= window) & (places + window < len(logs))
    around = np.r_[-window:0, 1 : window + 1]
    whole = np.flatnonzero(inside)
    for first in range(0, len(whole), TOGETHER):
        part = whole[first : first + TOGETHER]
        near = logs[places[part][:, None] + around]
        middle[part] = np.median(near, axis=1)
        sigma[part] = MAD_TO_SIGMA * np.median(np.abs(near - middle[part][:, None]), axis=1)
    for index in np.flatnonzero(~inside):
        place = places[index]
        near = np.r_[logs[max(0, place - window) : place], logs[place + 1 : place + 1 + window]]
        middle[index], sigma[index] = median(near), spread(near)
    return middle, sigma


def columns_median(table: Floats) -> Floats:
    """Median of each column's finite values; NaN where a column has none.

    Example:
        >>> columns_median(np.array([[1.0, np.nan], [3.0, np.nan]]))
        array([ 2., nan])
    """
    return np.array([median(column) for column in table.T])


def blocks(values: Floats, most: int = 1024) -> Floats:
    """Medians of equal blocks, at most `most` of them: a long curve at the cost of a short one.

    Example:
        >>> blocks(np.array([1.0, 2.0, 9.0, 4.0, 5.0, 6.0]), most=2)
        array([2., 5.])
        >>> blocks(np.array([1.0, 2.0]), most=2)
        array([1., 2.])
    """
    if len(values) <= most:
        return values
    size = -(-len(values) // most)
    whole = len(values) // size * size
    return np.asarray(np.median(values[:whole].reshape(-1, size), axis=1))


def running_median(values: Floats, window: int) -> Floats:
    """Median over the `window` values that end at each place; shorter at the start.

    Example:
        >>> running_median(np.array([1.0, 9.0, 2.0, 3.0]), 3)
        array([1., 5., 2., 3.])
    """
    if len(values) < window:
        return np.array([median(values[: i + 1]) for i in range(len(values))])
    view = np.lib.stride_tricks.sliding_window_view(values, window)
    head = [median(values[: i + 1]) for i in range(window - 1)]
    return np.concatenate([head, np.median(view, axis=1)])


def order_agreement(values: Floats | Sequence[float]) -> float:
    """Kendall's tau of the finite values against their place: 1 rising, -1 falling.

    Example:
        >>> order_agreement([1.0, 2.0, 3.0]), order_agreement([3.0, 2.0, 1.0])
        (1.0, -1.0)
    """
    array = np.asarray(values, dtype=np.float64)
    array = array[np.isfinite(array)]
    if len(array) > 200:
        array = array[np.linspace(0, len(array) - 1, 200).astype(np.int64)]
    if len(array) < 2:
        return math.nan
    upper = np.triu_indices(len(array), 1)
    return float(np.sign(array[None, :] - array[:, None])[upper].mean())
