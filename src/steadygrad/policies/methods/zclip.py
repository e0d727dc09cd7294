"""ZClip: clipping by the z-score of the norm."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from steadygrad.policies.base import Decision, Policy, State, coefficient, require_positive
from steadygrad.policies.checks import require_count, require_share
from steadygrad.policies.wide import cast
from steadygrad.stats import GradientStats

if TYPE_CHECKING:
    from steadygrad.typing import Array, DType, Namespace


@dataclass(frozen=True)
class ZClip(Policy):
    """Clip a norm whose z-score exceeds ``z``, the harder the higher it stands.

    With running mean m and deviation s of the norms, and ``z_t = (norm - m) / (s + eps)``:
    where ``z_t > z`` the threshold is ``(m + z * s / (z_t / z)) * clip_factor``, and that
    value, not the spike, enters the running figures. Elsewhere ``max_norm`` alone holds,
    as it does during warm-up.

    The variance is kept relative to the mean, so that no finite norm overflows it, and
    non-finite norms never enter.

    Args:
        z: z-score from which norms are clipped.
        alpha: smoothing of mean and variance, 0 to 1.
        warmup: number of norms that mean and population variance start from.
        max_norm: fixed threshold that always holds too; inf for none.
        clip_factor: multiplies the adaptive threshold.
        eps: added to the deviation, in units of the norm.

    Raises:
        SpecError: a parameter out of its range.

    Example:
        >>> ZClip(alpha=0.99).spec()
        'zclip:alpha=0.99'

    References:
        Kumar, Owen, Chowdhury, Güra. ZClip: Adaptive Spike Mitigation for LLM
        Pre-Training. arXiv:2504.02507, 2025; defaults of its implementation.
    """

    name: ClassVar[str] = "zclip"
    examples: ClassVar[tuple[str, ...]] = ("zclip:warmup=10", "zclip:max_norm=inf,warmup=10")
    z: float = 2.5
    alpha: float = 0.97
    warmup: int = 25
    max_norm: float = 1.0
    clip_factor: float = 1.0
    eps: float = 1e-6

    def __post_init__(self) -> None:
        require_positive(self, "z", "max_norm", "clip_factor", "eps")
        require_share(self, "alpha")
        require_count(self, "warmup")

    @property
    def usual_clip_rate(self) -> float:
        return 1.0

    def init(
        self, xp: Namespace, names: tuple[str, ...], float_dtype: DType, int_dtype: DType
    ) -> State:
        zero = xp.zeros((), dtype=float_dtype)
        return {"count": xp.zeros((), dtype=int_dtype), "mean": zero, "relative_variance": zero}

    def decide(self, xp: Namespace, state: State, stats: GradientStats) -> tuple[State, Decision]:
        norm, mean, count = stats.total_norm, state["mean"], state["count"]
        ok = xp.isfinite(norm)
        x = xp.where(ok, norm, mean)
        deviation = mean * xp.sqrt(state["relative_variance"])
        guard = deviation + self.eps
        inverse_z = guard / xp.maximum(x - mean, guard * 1e-30)  # 1 / z overflows nowhere
        spike = inverse_z * self.z < 1.0
        lowered = (mean + self.z * deviation * (self.z * inverse_z)) * self.clip_factor
        warm = count >= self.warmup
        adaptive = xp.where(spike, lowered, mean + self.z * guard)
        fixed = xp.full_like(norm, self.max_norm)
        threshold = xp.where(warm, xp.minimum(adaptive, fixed), fixed)
        seen = xp.where(warm & spike, lowered, x)
        new_mean, new_variance = self._update(xp, state, seen, warm)
        after = {
            "count": xp.where(ok, count + 1, count),
            "mean": xp.where(ok, new_mean, mean),
            "relative_variance": xp.where(ok, new_variance, state["relative_variance"]),
        }
        return after, Decision(threshold, coefficient(xp, norm, threshold))

    def _update(self, xp: Namespace, state: State, x: Array, warm: Array) -> tuple[Array, Array]:
        """Mean and relative variance with ``x``: Welford's during warm-up, exponential after."""
        mean = state["mean"]
        share = 1.0 / cast(xp, state["count"] + 1, mean.dtype)
        weight = xp.where(warm, xp.full_like(mean, 1.0 - self.alpha), share)
        new = mean + weight * (x - mean)
        unit = xp.where(new > 0, new, xp.ones_like(new))
        old = state["relative_variance"] * (mean / unit) ** 2
        ahead, behind = (x - mean) / unit, (x - new) / unit
        square = xp.where(warm, behind * behind, ahead * behind)
        return new, (1.0 - weight) * old + weight * square
