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

    Over the last ``window`` log norms before clipping, with quartiles q50 and q75:
    ``threshold = exp(q50 + reach)``, where ``reach = 3 * 1.4826 * (q75 - q50)`` is held
    between the logs of ``least`` and ``most``. Half of a window would have to be spikes
    before they move it. Of the first ``warmup`` norms none is let over ``start``.

    A threshold that follows the norm must not follow it into a divergence. So it never
    exceeds ``rise`` times the level of the first window, or ``start`` if that is more, and
    never ``ceiling``. A falling norm is followed without limit. Zero and non-finite norms
    do not enter.

    Args:
        window: number of norms that the level is taken from.
        warmup: number of norms before the level counts.
        start: fixed threshold during warm-up.
        least: the threshold is at least so many times the level.
        most: and at most so many times.
        rise: how many times the first window's level the threshold may reach.
        ceiling: the largest threshold, in units of the norm.

    Raises:
        SpecError: a parameter out of its range.

    Example:
        >>> Auto().spec(), Auto(most=3.0).spec()
        ('auto', 'auto:most=3.0')
    """

    name: ClassVar[str] = "auto"
    window: int = 128
    warmup: int = 20
    start: float = 1.0
    least: float = 1.5
    most: float = 4.0
    rise: float = 4.0
    ceiling: float = 10.0

    def __post_init__(self) -> None:
        require_positive(self, "start", "least", "most", "rise", "ceiling")
        require_count(self, "window", "warmup", least=2)
        if not 1 < self.least <= self.most < math.inf:
            raise SpecError(
                f"Auto: needs 1 < least <= most, got least={self.least}, most={self.most}; "
                "for example auto:least=1.5,most=4.0"
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
        reach = xp.clip(3.0 * 1.4826 * spread, math.log(self.least), math.log(self.most))
        start = xp.full_like(level, math.log(self.start))
        first = count <= self.window
        reference = xp.where(first, level, state["reference"])
        highest = xp.clip(
            xp.maximum(reference + math.log(self.rise), start), -math.inf, math.log(self.ceiling)
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
