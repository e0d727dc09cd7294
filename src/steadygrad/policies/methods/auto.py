"""Auto: what steadygrad recommends where nothing is known about a run yet."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from steadygrad.errors import SpecError
from steadygrad.policies import history as memory
from steadygrad.policies.base import Decision, Policy, State, coefficient, require_positive
from steadygrad.policies.checks import require_count
from steadygrad.stats import MAD_TO_SIGMA, GradientStats

if TYPE_CHECKING:
    from steadygrad.typing import DType, Namespace


@dataclass(frozen=True)
class Auto(Policy):
    """Clip over the run's own level: `steadygrad.calibrate`, done at every step.

    Over the last ``window`` log norms before clipping, with quartiles q50 and q75 and
    ``sigma = 1.4826 * (q75 - q50)``: ``threshold = exp(q50 + sigmas * sigma)``, at least
    ``nearest`` and at most ``farthest`` times ``exp(q50)``. So the usual step is left alone
    and a spike is not; half of a window would have to be spikes before they move the level.

    Norms well over 1 are held lower, since there a threshold over the level would not slow a
    run that is too fast: no threshold exceeds ``share`` of the first window's level, or
    ``start`` if that is more. That limit stays, so a threshold that follows the norm does not
    follow it into a divergence; nor does a level count as more than ``growth`` times the
    one at the end of the warm-up. A falling norm is followed without limit. Of the first
    ``warmup`` norms none is let over ``start``. Zero and non-finite norms do not enter.

    Where norms are between a quarter of ``start`` and five times it, this is a fixed ``start``
    for most runs; it differs where the gradient has another scale.

    Args:
        window: number of norms that the level is taken from.
        warmup: number of norms before the level counts.
        start: fixed threshold during warm-up, and allowed ever after.
        sigmas: robust deviations from the level to the threshold.
        nearest: the threshold is at least so many times the level, unless a limit below holds.
        farthest: the threshold is at most so many times the level.
        share: of the first window's level, what the threshold may reach.
        growth: how many times the warm-up's level the first window's may count as.

    Raises:
        SpecError: a parameter out of its range.

    Example:
        >>> Auto().spec(), Auto(window=64).spec()
        ('auto', 'auto:window=64')
    """

    name: ClassVar[str] = "auto"
    examples: ClassVar[tuple[str, ...]] = ("auto", "auto:warmup=10")
    window: int = 128
    warmup: int = 20
    start: float = 1.0
    sigmas: float = 3.0
    nearest: float = 1.25
    farthest: float = 4.0
    share: float = 0.2
    growth: float = 10.0

    def __post_init__(self) -> None:
        require_positive(self, "start", "sigmas", "nearest", "farthest", "share", "growth")
        require_count(self, "window", "warmup", least=2)
        if not (self.nearest <= self.farthest < math.inf and self.start < math.inf):
            raise SpecError(
                f"Auto: needs nearest <= farthest and a finite start, got nearest={self.nearest}, "
                f"farthest={self.farthest}, start={self.start}; for example "
                "auto:nearest=1.25,farthest=4"
            )

    @property
    def usual_clip_rate(self) -> float:
        return 1.0

    def init(
        self, xp: Namespace, names: tuple[str, ...], float_dtype: DType, int_dtype: DType
    ) -> State:
        zero = xp.zeros((), dtype=float_dtype)
        return {
            "count": xp.zeros((), dtype=int_dtype),
            "ring": xp.full((self.window,), memory.LOWEST, dtype=float_dtype),
            "origin": zero,
            "reference": zero,
        }

    def decide(self, xp: Namespace, state: State, stats: GradientStats) -> tuple[State, Decision]:
        norm, ring, count = stats.total_norm, state["ring"], state["count"]
        usable = xp.isfinite(norm) & (norm > 0)
        log = memory.log_of(xp, norm, usable)
        level, upper = memory.quantiles(xp, ring, count, 0.5, 0.75)
        sigma = MAD_TO_SIGMA * (upper - level)
        none = level * 0  # cheaper than `clip` and `full_like` in eager NumPy
        reach = xp.maximum(self.sigmas * sigma, none + math.log(self.nearest))
        reach = xp.minimum(reach, none + math.log(self.farthest))
        warmup = min(self.warmup, self.window)
        origin = xp.where(count <= warmup, level, state["origin"])
        highest = xp.minimum(level, origin + math.log(self.growth))
        reference = xp.where(count <= self.window, highest, state["reference"])
        start = none + math.log(self.start)
        limit = xp.maximum(reference + math.log(self.share), start)
        threshold = xp.exp(xp.where(count >= warmup, xp.minimum(level + reach, limit), start))
        after = {
            "count": count + 1,
            "ring": memory.push(xp, ring, count, log),
            "origin": origin,
            "reference": reference,
        }
        next_state = {key: xp.where(usable, after[key], state[key]) for key in state}
        return next_state, Decision(threshold, coefficient(xp, norm, threshold))
