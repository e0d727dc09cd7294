"""Skipping the steps whose norm stands far out."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from steadygrad.policies import history as memory
from steadygrad.policies.base import Decision, Policy, State, require_positive
from steadygrad.policies.checks import require_choice, require_count
from steadygrad.policies.wide import cast
from steadygrad.stats import MAD_TO_SIGMA, GradientStats

if TYPE_CHECKING:
    from steadygrad.typing import Array, DType, Namespace

LARGEST = 88.0
"""A threshold is shown up to the exponential of this, which every float dtype in use can hold."""


@dataclass(frozen=True)
class SkipSpike(Policy):
    """Drop a step whose norm stands ``sigmas`` robust deviations over the clean steps'.

    With median m and median absolute deviation d of the last ``window`` log norms, a step
    is skipped where ``log(norm) > m + sigmas * 1.4826 * d`` and ``norm > factor * exp(m)``.
    With ``rule=sigma`` the limit is mean + ``sigmas`` sample deviations of the norms, as
    in OLMo-core's SkipStep.

    Skipped steps do not enter the window, so one spike does not mask the next. After
    ``patience`` skips in a row the norm has a new level: the window starts anew, and
    nothing is skipped until it holds ``after`` steps again.

    Args:
        sigmas: deviations from which a step is skipped.
        window: number of clean steps that are remembered.
        after: number of clean steps before the first skip.
        rule: ``mad`` or ``sigma``.
        factor: a skipped norm is at least so many times the median; 1 for no such limit.
        patience: skips in a row after which the level counts as new.

    Raises:
        SpecError: a parameter out of its range.

    Example:
        >>> SkipSpike(rule="sigma").spec()
        'skip:rule=sigma'

    References:
        Groeneveld et al. OLMo: Accelerating the Science of Language Models. ACL 2024; the
        6 sigma, window 128 and start at 64 are those of OLMo-core's SkipStepOptimizer.
    """

    name: ClassVar[str] = "skip"
    examples: ClassVar[tuple[str, ...]] = ("skip:after=10", "skip:after=10,rule=sigma")
    sigmas: float = 6.0
    window: int = 128
    after: int = 64
    rule: str = "mad"
    factor: float = 2.0
    patience: int = 10

    def __post_init__(self) -> None:
        require_positive(self, "sigmas", "factor")
        require_count(self, "window", "after", least=2)
        require_count(self, "patience")
        require_choice(self, "rule", ("mad", "sigma"))

    def init(
        self, xp: Namespace, names: tuple[str, ...], float_dtype: DType, int_dtype: DType
    ) -> State:
        count = xp.zeros((), dtype=int_dtype)
        ring = xp.full((self.window,), memory.LOWEST, dtype=float_dtype)
        return {"count": count, "streak": count, "ring": ring}

    def decide(self, xp: Namespace, state: State, stats: GradientStats) -> tuple[State, Decision]:
        norm, ring, count = stats.total_norm, state["ring"], state["count"]
        usable = xp.isfinite(norm) & (norm > 0)
        log = memory.log_of(xp, norm, usable)
        limit = (self._mad if self.rule == "mad" else self._sigma)(xp, ring, count)
        ready = count >= min(self.after, self.window)
        skip = usable & ready & (log > limit)
        clean = usable & xp.logical_not(skip)
        none = count * 0
        streak = xp.where(skip, state["streak"] + 1, none)
        streak = xp.where(usable, streak, state["streak"])
        renewed = streak >= self.patience
        moved = xp.where(clean, memory.push(xp, ring, count, log), ring)
        after = {
            "count": xp.where(renewed, none, xp.where(clean, count + 1, count)),
            "streak": xp.where(renewed, none, streak),
            "ring": xp.where(renewed, ring * 0 + memory.LOWEST, moved),
        }
        level = xp.exp(xp.minimum(limit, limit * 0 + LARGEST))
        threshold = xp.where(ready, level, level + math.inf)
        return after, Decision(threshold, xp.ones_like(norm), skip)

    def _mad(self, xp: Namespace, ring: Array, count: Array) -> Array:
        """Log of the norm from which steps are skipped: by median and MAD."""
        (middle,) = memory.quantiles(xp, ring, count, 0.5)
        apart = xp.where(ring > memory.LOWEST, xp.abs(ring - middle), ring * 0 - 1.0)
        (mad,) = memory.quantiles(xp, apart, count, 0.5)
        least = math.log(self.factor) + mad * 0
        return middle + xp.maximum(self.sigmas * MAD_TO_SIGMA * mad, least)

    def _sigma(self, xp: Namespace, ring: Array, count: Array) -> Array:
        """The same by mean and sample deviation, in units of the largest norm remembered."""
        top = xp.max(ring)
        written = ring > memory.LOWEST
        x = xp.exp(xp.where(written, ring - top, xp.zeros_like(ring)))
        n = xp.maximum(xp.sum(cast(xp, written, ring.dtype)), xp.full_like(top, 2.0))
        mean = xp.sum(xp.where(written, x, xp.zeros_like(x))) / n
        apart = xp.where(written, x - mean, xp.zeros_like(x))
        deviation = xp.sqrt(xp.sum(apart * apart) / (n - 1))
        limit = xp.maximum(mean + self.sigmas * deviation, self.factor * mean)
        return top + xp.log(xp.where(limit > 0, limit, xp.ones_like(limit)))
