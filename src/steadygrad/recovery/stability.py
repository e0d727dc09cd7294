"""How stable a run was: the share of its steps that spike or recover.

A step spikes where its loss or norm lies over the mean of the 128 steps before it by six of their
standard deviations (the rule of OLMo-core), and it recovers where recovery acted on it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from steadygrad.recovery.events import RecoveryEvent

WINDOW, SIGMA = 128, 6.0


class Stability(NamedTuple):
    """A run's stability.

    Attributes:
        score: share of steps that spike or recover; 0 is best.
        spikes: steps that spike.
        recoveries: steps on which recovery acted.
        steps: all steps.
    """

    score: float
    spikes: int
    recoveries: int
    steps: int


def stability(
    losses: NDArray[np.float64], norms: NDArray[np.float64], acts: Iterable[RecoveryEvent] = ()
) -> Stability:
    """Score a run.

    Args:
        losses: ``[steps]``; NaN where unknown.
        norms: ``[steps]``.
        acts: what recovery did, its steps being places in the arrays.

    Returns:
        The score and what it is made of.

    Example:
        >>> norms = np.tile([1.0, 1.1], 100); norms[150] = 50.0
        >>> stability(np.full(200, np.nan), norms)
        Stability(score=0.005, spikes=1, recoveries=0, steps=200)
    """
    steps = len(norms)
    spiking = over(losses) | over(norms)
    acted = np.zeros(steps, bool)
    for act in acts:
        if 0 <= act.step < steps:
            acted[act.step] = True
    share = float((spiking | acted).mean()) if steps else 0.0
    return Stability(share, int(spiking.sum()), int(acted.sum()), steps)


def over(values: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Places that lie `SIGMA` deviations over the `WINDOW` finite values before them.

    Half a window must lie before a place; a value that is not finite is over everything, unless
    none of the run is.

    Args:
        values: ``[steps]``.
    """
    finite = np.isfinite(values)
    spiking = np.zeros(len(values), bool)
    if not finite.any():
        return spiking
    spiking |= np.isinf(values) | (np.isnan(values) & (np.cumsum(finite) > 0))
    places = np.flatnonzero(finite)
    usable = values[places]
    shift = float(np.median(usable))
    scale = float(np.max(np.abs(usable - shift))) or 1.0
    scaled = (usable - shift) / scale
    sums, squares = (np.r_[0.0, np.cumsum(scaled**power)] for power in (1, 2))
    ends = np.arange(len(usable))
    begins = np.maximum(0, ends - WINDOW)
    count = ends - begins
    enough = count >= WINDOW // 2
    counted = np.maximum(count, 1)
    mean = (sums[ends] - sums[begins]) / counted
    variance = np.maximum((squares[ends] - squares[begins]) / counted - mean**2, 0.0)
    spiking[places] = enough & (scaled - mean > SIGMA * np.sqrt(variance) + 1e-9)
    return spiking
