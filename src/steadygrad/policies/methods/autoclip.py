"""AutoClip: clipping at a percentile of the run's own norms."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from steadygrad.errors import SpecError
from steadygrad.policies import history as memory
from steadygrad.policies.base import Decision, Policy, State, coefficient
from steadygrad.policies.checks import require_count
from steadygrad.policies.wide import cast
from steadygrad.stats import GradientStats

if TYPE_CHECKING:
    from steadygrad.typing import Array, DType, Namespace


@dataclass(frozen=True)
class AutoClip(Policy):
    """Clip at the ``percentile`` of all norms so far, the current one included.

    ``threshold = percentile_p({norm_1, ..., norm_t})``, interpolated linearly.
    A norm equal to the threshold is not clipped, so the first step never is.

    Over a ``window`` the percentile is exact. Over the whole history, as in the paper,
    it comes from a sketch of constant size (16,384 bins of the log norm): within
    0.28 % for norms within a factor of 4e9 of the first one, farther ones counting as
    that far; norms in the threshold's own bin count as equal to it.

    Args:
        percentile: 0 to 100; low values clip most steps (at 10, nine in ten).
        window: number of latest norms that count; 0 for the whole history.

    Raises:
        SpecError: a percentile outside 0 to 100, a window under 0.

    Example:
        >>> AutoClip(10).spec(), AutoClip(25, window=1000).spec()
        ('autoclip', 'autoclip:percentile=25,window=1000')

    References:
        Seetharaman, Wichern, Pardo, Le Roux. AutoClip: Adaptive Gradient Clipping for
        Source Separation Networks. MLSP 2020, equation 5.
    """

    name: ClassVar[str] = "autoclip"
    examples: ClassVar[tuple[str, ...]] = ("autoclip:10", "autoclip:percentile=90,window=40")
    percentile: float = 10.0
    window: int = 0

    def __post_init__(self) -> None:
        number = isinstance(self.percentile, (int, float)) and not isinstance(self.percentile, bool)
        if not (number and 0 <= self.percentile <= 100):
            raise SpecError(
                f"AutoClip: percentile must be from 0 to 100, got {self.percentile!r}; "
                "for example percentile=10"
            )
        require_count(self, "window", least=0)

    @property
    def usual_clip_rate(self) -> float:
        return 1.0

    def init(
        self, xp: Namespace, names: tuple[str, ...], float_dtype: DType, int_dtype: DType
    ) -> State:
        count = xp.zeros((), dtype=int_dtype)
        if self.window:
            return {"count": count, "ring": xp.full((self.window,), -1.0, dtype=float_dtype)}
        cumulative = xp.zeros((memory.BINS,), dtype=int_dtype)
        return {
            "count": count,
            "origin": xp.zeros((), dtype=float_dtype),
            "cumulative": cumulative,
        }

    def decide(self, xp: Namespace, state: State, stats: GradientStats) -> tuple[State, Decision]:
        norm = stats.total_norm
        ok = xp.isfinite(norm)
        remember = self._exact if self.window else self._sketched
        after, threshold = remember(xp, state, norm, ok)
        next_state = {key: xp.where(ok, after[key], state[key]) for key in state}
        return next_state, Decision(threshold, coefficient(xp, norm, threshold))

    def _exact(self, xp: Namespace, state: State, norm: Array, ok: Array) -> tuple[State, Array]:
        count = state["count"] + 1
        value = xp.where(ok, norm, xp.zeros_like(norm))
        ring = memory.push(xp, state["ring"], state["count"], value)
        (threshold,) = memory.quantiles(xp, ring, count, self.percentile / 100)
        return {"count": count, "ring": ring}, threshold

    def _sketched(self, xp: Namespace, state: State, norm: Array, ok: Array) -> tuple[State, Array]:
        positive = ok & (norm > 0)
        log = memory.log_of(xp, norm, positive)
        log = xp.where(positive, log, xp.full_like(log, memory.LOWEST))
        started = state["count"] > 0
        origin = xp.where(started | ~positive, state["origin"], log)
        cumulative, own = state["cumulative"], memory.bin_of(xp, log, origin, state["count"])
        cumulative = memory.bin_add(xp, cumulative, own)
        position = cast(xp, state["count"], log.dtype) * (self.percentile / 100)
        low = xp.floor(position)
        rank = cast(xp, low, cumulative.dtype)
        ranks = xp.stack([rank, xp.minimum(rank + 1, state["count"])])
        bins = cast(xp, xp.searchsorted(cumulative, ranks, side="right"), own.dtype)
        ends = xp.exp(memory.bin_middle(xp, bins, origin))
        threshold = ends[0] + (position - low) * (ends[1] - ends[0])
        tie = (bins[0] == own) & ((bins[1] == own) | (position == low))
        after = {"count": state["count"] + 1, "origin": origin, "cumulative": cumulative}
        return after, xp.where(tie, norm, threshold)
