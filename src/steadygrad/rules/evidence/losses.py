"""How the loss went: its trend, and which of its NaN are the loss itself."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from steadygrad.robust import ENOUGH, blocks, running_median, spread
from steadygrad.rules.evidence.steps import Array, Steps
from steadygrad.rules.evidence.wording import percent
from steadygrad.vocabulary import NAN_LOSS

OTHERWISE_KNOWN = 0.2
"""Share of steps with a finite loss from which a NaN among the others is the loss itself."""


@dataclass(frozen=True)
class LossTrend:
    """How the loss went, smoothed by a running median.

    Attributes:
        recorded: whether enough finite losses were recorded.
        first: lowest of the first three losses, before training has done anything.
        start: median of the first window.
        middle: median of the window half-way.
        end: median of the last window.
        lowest: lowest median of any window.
        highest: highest median of any window after the first.
        noise: median absolute deviation of the steps from the smoothed loss.
        swing: median absolute change from one step to the next.
        window: steps in a window.
    """

    recorded: bool = False
    first: float = math.nan
    start: float = math.nan
    middle: float = math.nan
    end: float = math.nan
    lowest: float = math.nan
    highest: float = math.nan
    noise: float = math.nan
    swing: float = math.nan
    window: int = 0

    @property
    def fall(self) -> float:
        """Share of the starting loss that the lowest window has shed; NaN where unknown."""
        return (self.start - self.lowest) / max(abs(self.start), 1e-12)

    @property
    def stalled(self) -> bool:
        """Whether the loss is known and never fell by 15 % of where it began."""
        return self.recorded and self.fall < 0.15

    @property
    def plateau(self) -> bool:
        """Whether the loss is known and its second half brought less than 5 %."""
        late = (self.middle - self.end) / max(abs(self.middle), 1e-12)
        return self.recorded and late < 0.05

    @property
    def dear(self) -> bool:
        """Whether the first window lost nearly all of a loss that was far too large at the start.

        In its first window: a loss that falls as far in the course of the run is a good fit.
        """
        return self.recorded and self.first > 30 * max(abs(self.start), 1e-6)

    @property
    def blew_up(self) -> bool:
        """Whether the loss stood far above where it began at some time."""
        return self.recorded and self.highest > 3 * abs(self.first) + 4 * self.noise

    @property
    def worse(self) -> bool:
        """Whether the smoothed loss was never again as low as before training."""
        return self.recorded and self.lowest - self.first > max(
            0.2 * abs(self.first), 0.5 * self.noise
        )

    @property
    def diverged(self) -> bool:
        """Whether the loss ends well above where it began, beyond its own noise."""
        base = min(self.first, self.start)
        return (
            self.recorded
            and not self.home
            and self.end - base > max(0.5 * abs(base), 4 * self.noise)
        )

    @property
    def home(self) -> bool:
        """Whether a loss that may change sign ends as near to 0 as it began."""
        return self.signed and abs(self.end) <= max(abs(self.first), abs(self.start))

    @property
    def signed(self) -> bool:
        """Whether the loss goes below 0: then it is no error, and ratios of it mean little.

        The surrogate of a policy gradient, an adversary's score, a log-density.
        """
        return self.recorded and self.lowest < 0


def loss_trend(losses: Array) -> LossTrend:
    """Summarise a loss curve.

    Args:
        losses: one a step; NaN where unknown.

    Returns:
        The trend; `recorded` is False where fewer than `ENOUGH` losses are finite.

    Example:
        >>> t = loss_trend(np.linspace(2.0, 1.0, 100))
        >>> t.stalled, round(t.fall, 2)
        (False, 0.47)
    """
    finite = losses[np.isfinite(losses)]
    if len(finite) < ENOUGH:
        return LossTrend()
    thin = blocks(finite)
    window = max(3, len(thin) // 12)
    smooth = running_median(thin, window)[window - 1 :]
    noise = spread(thin[window - 1 :] - smooth)
    swing = float(np.median(np.abs(np.diff(finite))))
    later = smooth[1:] if len(smooth) > 1 else smooth
    ends = (
        float(finite[:3].min()),
        float(smooth[0]),
        float(smooth[len(smooth) // 2]),
        float(smooth[-1]),
    )
    extremes = (float(smooth.min()), float(later.max()))
    return LossTrend(True, *ends, *extremes, noise, swing, window)


class LossesOfSteps(Steps):
    """One optimizer's steps, and what their losses say."""

    @cached_property
    def loss_nan(self) -> Array:
        """Which steps had a NaN for a loss, as against steps whose loss nobody told.

        The writer of the file says from where on NaN is what the loss was. Where it says nothing,
        a run whose losses are known otherwise has no reason to leave one out.
        """
        nan = np.isnan(self.loss)
        since = [int(e.data.get("step", e.step or 0)) for e in self.events(NAN_LOSS)]
        if since or not len(self):
            return np.asarray(nan & (self.step >= min(since, default=0)))
        return nan if np.isfinite(self.loss).mean() > OTHERWISE_KNOWN else np.zeros_like(nan)

    @cached_property
    def loss_sentence(self) -> str:
        """How the loss went, for evidence: not recorded, NaN, or its figures."""
        trend = self.loss_trend
        if trend.recorded:
            return f"The loss: {trend.start:.4g} at the start, {trend.end:.4g} at the end."
        if self.loss_nan.any():
            return f"The loss is NaN in {percent(float(self.loss_nan.mean()))} of the steps."
        return "The loss is not recorded."

    @cached_property
    def loss_trend(self) -> LossTrend:
        """How the loss went over the usable steps."""
        return loss_trend(self.loss[~self.skipped])
