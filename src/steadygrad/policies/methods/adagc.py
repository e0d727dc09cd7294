"""AdaGC: clipping each tensor by the running norm of its own clipped gradients."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from steadygrad.policies.base import Decision, Policy, State, coefficient, require_positive
from steadygrad.policies.checks import require_count, require_share
from steadygrad.stats import GradientStats, combine_norms

if TYPE_CHECKING:
    from steadygrad.typing import DType, Namespace


@dataclass(frozen=True)
class AdaGC(Policy):
    """Clip each tensor at ``lambda_rel`` times the running norm of its clipped gradients.

    Warm-up: all gradients by ``min(1, lambda_abs / total_norm)``, and
    ``gamma_i = min(gamma_i, |g_i|)`` over the clipped norms. After it:
    ``h_i = min(lambda_rel * gamma_i / |g_i|, 1)`` and
    ``gamma_i = beta * gamma_i + (1 - beta) * h_i * |g_i|``.

    Zero norms do not enter gamma: a tensor without gradient in a warm-up step would be
    multiplied by 0 for ever. Steps with a non-finite norm enter nowhere, in any tensor.
    The recorded threshold is the largest total norm that could pass.

    Args:
        lambda_rel: how far over its running norm a tensor may go; spec key ``rel``.
        lambda_abs: the global threshold of the warm-up; spec key ``abs``.
        beta: smoothing, 0 to 1.
        warmup: number of steps of global clipping.

    Raises:
        SpecError: a parameter out of its range.

    Example:
        >>> AdaGC(beta=0.9).spec()
        'adagc:beta=0.9'

    References:
        Wang et al. AdaGC: Improving Training Stability for Large Language Model
        Pretraining. arXiv:2502.11034, 2025, algorithm 1.
    """

    name: ClassVar[str] = "adagc"
    examples: ClassVar[tuple[str, ...]] = ("adagc", "adagc:warmup=10", "adagc:warmup=0")
    lambda_rel: float = 1.05
    lambda_abs: float = 1.0
    beta: float = 0.98
    warmup: int = 100

    def __post_init__(self) -> None:
        require_positive(self, "lambda_rel", "lambda_abs")
        require_share(self, "beta")
        require_count(self, "warmup", least=0)

    @property
    def usual_clip_rate(self) -> float:
        return 1.0

    @property
    def per_tensor(self) -> frozenset[str]:
        return frozenset({"gamma"})

    def init(
        self, xp: Namespace, names: tuple[str, ...], float_dtype: DType, int_dtype: DType
    ) -> State:
        gamma = xp.zeros((len(names),), dtype=float_dtype)
        return {"count": xp.zeros((), dtype=int_dtype), "gamma": gamma}

    def decide(self, xp: Namespace, state: State, stats: GradientStats) -> tuple[State, Decision]:
        total, norms, gamma = stats.total_norm, stats.norms, state["gamma"]
        ok, seen = xp.isfinite(total), gamma > 0
        warm = state["count"] >= self.warmup
        limit = xp.where(seen, self.lambda_rel * gamma, xp.full_like(gamma, float("inf")))
        shared = coefficient(xp, total, self.lambda_abs) * xp.ones_like(gamma)
        coef = xp.where(warm, coefficient(xp, norms, limit), shared)
        usable = ok & (norms > 0)
        clipped = xp.where(usable, coef * xp.where(usable, norms, gamma), gamma)
        moved = xp.where(
            warm, self.beta * gamma + (1.0 - self.beta) * clipped, xp.minimum(gamma, clipped)
        )
        after = {
            "count": xp.where(ok, state["count"] + 1, state["count"]),
            "gamma": xp.where(usable, xp.where(seen, moved, clipped), gamma),
        }
        open_end = xp.any(xp.logical_not(seen))
        passing = combine_norms(xp, self.lambda_rel * gamma, stats.norm_type)
        passing = xp.where(open_end, xp.full_like(total, float("inf")), passing)
        threshold = xp.where(warm, passing, xp.full_like(total, self.lambda_abs))
        return after, Decision(threshold, coef)
