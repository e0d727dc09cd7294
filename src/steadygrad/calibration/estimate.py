"""The arithmetic of calibration: pure functions of one series of log norms.

Norms spread over decades and their noise is a factor, not a difference, so
everything happens on the log scale. Location and spread are a median and the
median of the deviations above it: a quarter of the steps may be spikes before
either moves far.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from steadygrad.robust import Floats, upper_sigma
from steadygrad.stats import MAD_TO_SIGMA

SIGMAS = 3.0
"""The threshold stands so many robust deviations over the median ..."""
NEAREST, FARTHEST = math.log(1.25), math.log(4.0)
"""... but no nearer and no farther than these (Pascanu et al.: half to ten times the average)."""
SPIKE_SIGMAS = 6.0
SPIKE_LEAST, SPIKE_SURE = math.log(2.0), math.log(10.0)
"""Under 2 times its level a norm is no spike; over 10 times it is, however wide the others."""
DIVERGED_FACTOR = math.log(100.0)
DRIFT_FACTOR = math.log(1.5)
KENDALL_Z = 2.58
RESAMPLES, RESAMPLED_POINTS = 200, 20_000
SETBACK_PLACES, MEDIAN_OF = 1024, 8192
"""How many places of a long run are asked whether the loss turned there, and by medians of what."""
RISE, RISE_NOISE = 0.1, 3.0
RIVAL_STEPS, RIVAL_BLOCKS, RIVALS = 100, 20, -0.6
"""Steps and stretches by which two losses are compared, and their correlation as adversaries."""
FELL, FELL_NOISE = 0.05, 6.0
"""A loss has fallen once it is 5 % lower, and by six standard errors of a median of 5."""


def log_threshold(x: Floats) -> float:
    """Log of the threshold for log norms ``x``, ``[steps]``."""
    median = float(np.median(x))
    reach = SIGMAS * upper_sigma(x, median)
    return median + min(max(reach, NEAREST), FARTHEST)


def block_medians(x: Floats, blocks: int) -> tuple[Floats, Floats]:
    """Centres and medians of ``blocks`` stretches of equal length."""
    edges = np.linspace(0, x.size, blocks + 1).astype(int)
    pairs = list(itertools.pairwise(edges))
    centres = np.array([(a + b - 1) / 2 for a, b in pairs])
    return centres, np.array([np.median(x[a:b]) for a, b in pairs])


def baseline(x: Floats) -> Floats:
    """The level that each step's log norm is compared with: block medians, joined by lines."""
    blocks = min(max(x.size // 25, 1), 100)
    centres, medians = block_medians(x, blocks)
    return np.interp(np.arange(x.size), centres, medians)


def above_level(x: Floats) -> tuple[NDArray[np.intp], Floats]:
    """Places of the steps that a threshold is there for, and their log height over their level.

    Twice the level is enough for that. `steadygrad.robust.spikes` asks for ten times: it looks
    for steps that harm a training.
    """
    height = x - baseline(x)
    sigma = upper_sigma(height, float(np.median(height)))
    places = np.flatnonzero(height > min(max(SPIKE_SIGMAS * sigma, SPIKE_LEAST), SPIKE_SURE))
    return places, height[places]


def divergence(x: Floats) -> int | None:
    """Place from which the norms stay 100 times over their level until then, or None."""
    blocks = min(max(x.size // 10, 4), 100)
    if x.size < 2 * blocks:
        return None
    _, medians = block_medians(x, blocks)
    lowest_from_here = np.minimum.accumulate(medians[::-1])[::-1]
    for j in range(1, blocks):
        level = float(np.median(medians[:j]))
        if lowest_from_here[j] > level + DIVERGED_FACTOR:
            start = int(np.linspace(0, x.size, blocks + 1)[j - 1])
            over = np.flatnonzero(x[start:] > level + DIVERGED_FACTOR)
            return start + int(over[0])
    return None


def drift(x: Floats) -> tuple[float, bool]:
    """Log change over the whole series along its Theil-Sen line, and whether it is a trend.

    A trend is a change of 1.5 times or more that Mann and Kendall's test on 20
    block medians tells from noise (two-sided 1 %).
    """
    blocks = min(20, x.size // 5)
    centres, medians = block_medians(x, blocks)
    i, j = np.triu_indices(blocks, 1)
    rises = medians[j] - medians[i]
    change = float(np.median(rises / (centres[j] - centres[i]))) * (x.size - 1)
    variance = blocks * (blocks - 1) * (2 * blocks + 5) / 18
    score = abs(float(np.sign(rises).sum())) - 1
    return change, abs(change) > DRIFT_FACTOR and score / math.sqrt(variance) > KENDALL_Z


def bootstrap(
    x: Floats, figure: Callable[[Floats], float] = log_threshold, seed: int = 0
) -> tuple[float, float]:
    """95 % interval of a ``figure`` of ``x``, by resampling whole blocks of neighbouring steps.

    Blocks of about the square root of the length keep the correlation between
    neighbours. Beyond 20,000 steps every k-th is used, which widens the interval a little.
    """
    x = x[:: -(-x.size // RESAMPLED_POINTS)]
    length = max(1, round(math.sqrt(x.size)))
    blocks = -(-x.size // length)
    starts = np.random.default_rng(seed).integers(0, x.size - length + 1, (RESAMPLES, blocks))
    draws = [figure(x[(row[:, None] + np.arange(length)).ravel()[: x.size]]) for row in starts]
    low, high = np.quantile(draws, [0.025, 0.975])
    return float(low), float(high)


def loss_rise(losses: Floats) -> tuple[float, float] | None:
    """Median loss of the first and of the last 5 % of the steps, where it rose; else None.

    Only a loss that is an error can rise: one that goes below 0 is a score, of an adversary or of
    a policy, and says nothing. A rise counts beyond a tenth and beyond the noise of the steps.

    Example:
        >>> loss_rise(np.linspace(2.0, 9.0, 41)), loss_rise(np.linspace(9.0, 2.0, 41))
        ((2.0875, 8.9125), None)
        >>> loss_rise(np.linspace(-1.0, 9.0, 41)) is None
        True
    """
    width = max(1, losses.size // 20)
    parts = (losses[:width], losses[losses.size - width :])
    ends = [part[np.isfinite(part)] for part in parts]
    if not all(part.size for part in ends) or np.nanmin(losses) < 0:
        return None
    first, last = (float(np.median(part)) for part in ends)
    changes = np.abs(np.diff(losses[np.isfinite(losses)]))
    sigma = MAD_TO_SIGMA * float(np.median(changes)) / math.sqrt(2)
    least = max(RISE * first, RISE_NOISE * sigma / math.sqrt(width))
    return (first, last) if last - first > least else None


@dataclass(frozen=True)
class Setback:
    """A loss that fell and then lost what it had gained.

    Attributes:
        place: index of the step after which it turned.
        first: where the loss began.
        lowest: how far it had fallen.
        after: its median over the next fifth of the run.
    """

    place: int
    first: float
    lowest: float
    after: float


def setback(losses: Floats) -> Setback | None:
    """The first time that a loss fell and then gave back half of the fall, for a fifth of the run.

    What it fell to is a median of 5 steps. In runs of more than a thousand steps some places
    are asked, not all. That is what a learning rate does that is too
    high for the steepest places on the way: norms from before are those of a training that
    worked, norms from after are not.

    A loss that goes below 0, as the surrogate of a policy does, may come back to 0 and beyond at no
    loss: it is set back where it stands higher than it began, and than it had been low.

    Args:
        losses: one a step. One that is not finite counts as the last finite one before it: a loss
            that rose, and then overflowed, has risen; one that an operation made NaN has not.

    Example:
        >>> falling = np.linspace(2.3, 1.5, 30)
        >>> setback(np.concatenate([falling, np.full(70, 2.2)]))
        Setback(place=30, first=2.244..., lowest=1.555..., after=2.2)
        >>> setback(np.concatenate([falling, np.full(70, 1.6)])) is None
        True
    """
    wide = max(20, losses.size // 5)
    if losses.size < 2 * 5 + wide:
        return None
    losses = _filled(losses)
    changes = np.abs(np.diff(losses))
    medians = np.median(np.lib.stride_tricks.sliding_window_view(losses, 5), axis=1)
    lowest, first = np.minimum.accumulate(medians), float(medians[0])
    if not math.isfinite(first):
        return None
    ends = np.flatnonzero(first - lowest > FELL * abs(first))
    for end in _some(ends[ends + 5 + wide <= losses.size], SETBACK_PLACES):
        seen = int(end) + 5
        fall = first - float(lowest[end])
        after = float(np.median(_thinned(losses[seen : seen + wide])))
        lost = first - fall / 2 if lowest[end] >= 0 else max(first, -float(lowest[end]))
        if after > lost and fall > FELL_NOISE * _noise(changes[: seen - 1]):
            turned = seen + int(np.argmax(medians[seen:] > lost))
            least = int(np.argmin(medians[:turned]))
            return Setback(least + 5, first, float(medians[least]), after)
    return None


def opposed(losses: Floats, others: Floats) -> bool:
    """Whether one loss falls where the other rises, as those of two adversaries do.

    Args:
        losses: of one optimizer, a step each.
        others: of another one, over the same time.

    Example:
        >>> wave = np.sin(np.arange(400) / 30)
        >>> opposed(1 + wave, 2 - wave), opposed(1 + wave, 2 + wave)
        (True, False)
    """
    if min(losses.size, others.size) < RIVAL_STEPS:
        return False
    mine, theirs = (
        np.argsort(np.argsort(block_medians(_filled(each), RIVAL_BLOCKS)[1]))
        for each in (losses, others)
    )
    return bool(np.corrcoef(mine, theirs)[0, 1] < RIVALS)


def _filled(losses: Floats) -> Floats:
    """Each loss, or the last finite one before it; NaN before the first of them."""
    places = np.maximum.accumulate(np.where(np.isfinite(losses), np.arange(losses.size), -1))
    return np.where(places >= 0, losses[places], np.nan)


def _noise(changes: Floats) -> float:
    """Standard error of a median of 5 losses, judged by the changes from step to step."""
    if not changes.size:
        return 0.0
    usual = float(np.median(_thinned(changes)))
    return MAD_TO_SIGMA * usual / math.sqrt(2) * math.sqrt(math.pi / 10)


def _some(places: NDArray[np.intp], most: int) -> NDArray[np.intp]:
    """All places where they are few; else the first eighth of ``most``, and evenly spread ones."""
    if places.size <= most:
        return places
    even = np.linspace(0, places.size - 1, most - most // 8).astype(np.intp)
    return places[np.union1d(np.arange(most // 8), even)]


def _thinned(values: Floats) -> Floats:
    """Every k-th value, so that a median costs the same however many there are."""
    return values[:: -(-values.size // MEDIAN_OF) or 1]


def two_digits(value: float) -> float:
    """Rounded to two significant digits: what a person types."""
    return float(f"{value:.2g}")
