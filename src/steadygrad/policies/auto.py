"""Auto: what steadygrad recommends where nothing is known about a run yet."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

from steadygrad.errors import SpecError
from steadygrad.policies import memory
from steadygrad.policies.base import Decision, Policy, State, coefficient, require_positive
from steadygrad.policies.checks import require_count
from steadygrad.stats import GradientStats


@dataclass(frozen=True)
class Auto(Policy):
    """Clip over the run's own level: `steadygrad.calibrate`, done at every step.

    Over the last ``window`` log norms before clipping, with quartiles q50 and q75 and
    ``sigma = 1.4826 * (q75 - q50)``: ``threshold = exp(q50) * over * exp(-3 * sigma)``, at
    least ``least`` times ``exp(q50)``. So a run whose norms hardly vary is clipped at its
    spikes, and the wilder the norms, the lower they are held: that is where a smaller step
    helps. Half of a window would have to be spikes before they move the level. Of the
    first ``warmup`` norms none is let over ``start``.

    A threshold that follows the norm must not follow it into a divergence. So it never
    exceeds ``share`` of the first window's level, or ``start`` if that is more, and never
    ``ceiling``. A falling norm is followed without limit. Zero and non-finite norms do not
    enter.

    Args:
        window: number of norms that the level is taken from.
        warmup: number of norms before the level counts.
        start: fixed threshold during warm-up, and allowed ever after.
        over: threshold over the level where norms do not vary.
        least: the threshold is at least so many times the level, unless a limit below holds.
        share: of the first window's level, what the threshold may reach.
        ceiling: the largest threshold, in units of the norm.

    Raises:
        SpecError: a parameter out of its range.

    Example:
        >>> Auto().spec(), Auto(window=64).spec()
        ('auto', 'auto:window=64')
    """

    name: ClassVar[str] = "auto"
    window: int = 128
    warmup: int = 20
    start: float = 1.0
    over: float = 1.5
    least: float = 0.3
    share: float = 0.3
    ceiling: float = 10.0

    def __post_init__(self) -> None:
        require_positive(self, "start", "over", "least", "share", "ceiling")
        require_count(self, "window", "warmup", least=2)
        if not (self.least <= self.over < math.inf and self.start <= self.ceiling):
            raise SpecError(
                f"Auto: needs least <= over and start <= ceiling, got least={self.least}, "
                f"over={self.over}, start={self.start}, ceiling={self.ceiling}; for example "
                "auto:least=0.3,over=1.5"
            )

    def init(self, xp: Any, names: tuple[str, ...], float_dtype: Any, int_dtype: Any) -> State:
        ring = xp.full((self.window,), memory.LOWEST, dtype=float_dtype)
        return {
            "count": xp.zeros((), dtype=int_dtype),
            "ring": ring,
            "reference": xp.zeros((), dtype=float_dtype),
        }

    def decide(self, xp: Any, state: State, stats: GradientStats) -> tuple[State, Decision]:
        norm, ring, count = stats.total_norm, state["ring"], state["count"]
        usable = xp.isfinite(norm) & (norm > 0)
        log = memory.log_of(xp, norm, usable)
        rising = memory.ordered(xp, ring, count)
        level = memory.quantile(xp, rising, count, 0.5)
        spread = memory.quantile(xp, rising, count, 0.75) - level
        sigma = 1.4826 * spread
        reach = xp.clip(math.log(self.over) - 3.0 * sigma, math.log(self.least), math.inf)
        start = xp.full_like(level, math.log(self.start))
        first = count <= self.window
        reference = xp.where(first, level, state["reference"])
        highest = xp.clip(
            xp.maximum(reference + math.log(self.share), start), -math.inf, math.log(self.ceiling)
        )
        warm = count >= min(self.warmup, self.window)
        threshold = xp.exp(xp.where(warm, xp.minimum(level + reach, highest), start))
        moved = memory.push(xp, ring, count, log)
        after = {
            "count": xp.where(usable, count + 1, count),
            "ring": xp.where(usable, moved, ring),
            "reference": xp.where(usable, reference, state["reference"]),
        }
        return after, Decision(threshold, coefficient(xp, norm, threshold))
