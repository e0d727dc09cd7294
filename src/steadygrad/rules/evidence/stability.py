"""How stable a run was: the share of its steps that spike or recover.

A step spikes where its loss or its norm lies over the mean of the 128 steps before it by more than
six of their standard deviations, the rule by which OLMo-core leaves steps out, and where either of
them is NaN or inf. It recovers where nothing of it remains: recovery dropped it or took it back.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from steadygrad.recovery.undone import DROPS
from steadygrad.rules.evidence.breaks import scaler_at_work
from steadygrad.rules.evidence.view import View
from steadygrad.runlog import Run, as_run

WINDOW, SIGMA = 128, 6.0
ENOUGH = WINDOW // 2
"""Values that must lie before one, so that it can be called a spike."""
ROUNDING = 1e-6
"""Share of the mean within which a value is no spike, however still the others are."""
HUGE = 1e140
"""Times the median, from where on a square is inf."""

Floats = NDArray[np.float64]


class Stability(NamedTuple):
    """How stable a run was.

    Attributes:
        score: share of the steps that spike or recover, 0 to 1, the less the better; NaN where a
            run is too short to tell.
        spikes: steps that spike, without those that recover.
        recoveries: steps of which recovery left nothing.
        steps: steps recorded.
    """

    score: float
    spikes: int
    recoveries: int
    steps: int

    def to_dict(self) -> dict[str, float | int | None]:
        """The same as strict JSON holds it: an unknown score is None."""
        finite = math.isfinite(self.score)
        return {**self._asdict(), "score": self.score if finite else None}


def stability(run: Run | str | os.PathLike[str]) -> Stability:
    """Score how stable a run was, so that runs can be ranked by it.

    Each optimizer's steps are compared with its own.

    Args:
        run: an open run, or the path of a run file.

    Returns:
        The score, and what it is made of.

    Raises:
        RunFileError: the path is no run file.

    Example:
        >>> norms = np.tile([1.0, 1.1], 100)
        >>> norms[150] = 50.0
        >>> stability(Run.from_arrays(steps={"norm": norms}))
        Stability(score=0.005, spikes=1, recoveries=0, steps=200)
    """
    opened = as_run(run)
    return joined([of_view(View(opened, number)) for number in opened.parts])


def joined(parts: Sequence[Stability]) -> Stability:
    """The stability of a run from that of each of its optimizers."""
    spikes, recoveries, steps = (sum(p[i] for p in parts) for i in (1, 2, 3))
    judged = any(math.isfinite(part.score) for part in parts)
    score = (spikes + recoveries) / steps if judged else math.nan
    return Stability(score, int(spikes), int(recoveries), int(steps))


def of_view(view: View) -> Stability:
    """The stability of one optimizer's steps."""
    dropped = [act.step for act in view.acts if act.act in DROPS]
    left = ~np.isin(view.step, dropped)
    recoveries = view.undone + int((~left).sum())
    odd = spiking(np.where(view.loss_nan, np.inf, view.loss)[left], unknown=True)
    norms = np.where(view.broken, np.nan, view.norm)
    odd |= spiking(norms[left], unknown=scaler_at_work(view))
    spikes, steps = int(odd.sum()), len(view) + view.undone
    score = (spikes + recoveries) / steps if steps > ENOUGH else math.nan
    return Stability(score, spikes, recoveries, steps)


def spiking(values: Floats, unknown: bool = False) -> NDArray[np.bool_]:
    """Places that lie far over the values before them, or hold an inf or a NaN.

    Takes time and memory in proportion to what it is given.

    Args:
        values: ``[steps]``.
        unknown: a NaN says that nothing is known of that step, and is no spike.

    Returns:
        ``[steps]``. Nothing finite before `ENOUGH` others is a spike; what is not finite is in no
        mean.

    Example:
        >>> values = np.tile([1.0, 1.1], 50)
        >>> values[[80, 90]] = 2.0, np.nan
        >>> np.flatnonzero(spiking(values))
        array([80, 90])
    """
    size = np.abs(values)
    middle = float(np.median(size[np.isfinite(size)])) if np.isfinite(size).any() else 1.0
    scaled = values / (middle or 1.0)
    usable = np.isfinite(scaled) & (np.abs(scaled) < HUGE)
    spikes = ~usable & ~np.isnan(values) if unknown else ~usable
    mean, sigma, count = _before(scaled[usable])
    limit = mean + SIGMA * sigma + ROUNDING * np.abs(mean)
    spikes[usable] = (count >= ENOUGH) & (scaled[usable] > limit)
    return np.asarray(spikes)


def _before(values: Floats) -> tuple[Floats, Floats, NDArray[np.int64]]:
    """Mean and deviation of the up to `WINDOW` values before each place, and how many they are.

    A window is the end of one block of `WINDOW` values and the beginning of the next. Sums run
    over what is in it alone, about its block's median: no difference of large sums is taken.
    """
    blocks = max(1, -(-len(values) // WINDOW))
    padding = np.full(blocks * WINDOW - len(values), values[-1] if len(values) else 0.0)
    table = np.concatenate([values, padding]).reshape(blocks, WINDOW)
    middle = np.median(table, axis=1, keepdims=True)
    apart = table - middle
    begun, begun_squares = _sums_before(apart), _sums_before(apart**2)
    ended, ended_squares = (_sums_from(x) for x in (apart, apart**2))
    place = np.arange(WINDOW)
    of_this = _moments(place, begun, begun_squares)
    nothing = np.zeros((1, WINDOW))
    of_last = _moments(
        np.where(np.arange(blocks)[:, None] > 0, WINDOW - place, 0),
        np.concatenate([nothing, ended[:-1]]),
        np.concatenate([nothing, ended_squares[:-1]]),
    )
    middle_of_last = np.concatenate([middle[:1], middle[:-1]])
    count = of_this[0] + of_last[0]
    counted = np.maximum(count, 1)
    gap = (middle + of_this[1]) - (middle_of_last + of_last[1])
    mean = middle_of_last + of_last[1] + gap * of_this[0] / counted
    squares = of_this[2] + of_last[2] + gap**2 * of_this[0] * of_last[0] / counted
    sigma = np.sqrt(squares / np.maximum(count - 1, 1))
    shown = slice(0, len(values))
    return mean.ravel()[shown], sigma.ravel()[shown], count.ravel()[shown]


def _moments(
    count: NDArray[np.int64], sums: Floats, squares: Floats
) -> tuple[NDArray[np.int64], Floats, Floats]:
    """Count, mean, and the sum of squares about that mean."""
    mean = sums / np.maximum(count, 1)
    return np.broadcast_to(count, sums.shape), mean, np.maximum(squares - sums * mean, 0.0)


def _sums_before(table: Floats) -> Floats:
    sums = np.zeros_like(table)
    np.cumsum(table[:, :-1], axis=1, out=sums[:, 1:])
    return sums


def _sums_from(table: Floats) -> Floats:
    return np.cumsum(table[:, ::-1], axis=1)[:, ::-1]
