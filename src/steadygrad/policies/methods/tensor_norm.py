"""Clipping each tensor by its own norm."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from steadygrad.policies.base import Decision, State, coefficient
from steadygrad.policies.fixed_norm import ByFixedNorm
from steadygrad.stats import GradientStats

if TYPE_CHECKING:
    from steadygrad.typing import Namespace


@dataclass(frozen=True)
class ClipTensorNorm(ByFixedNorm):
    """Scale each tensor's gradient by ``min(1, max_norm / norm)`` of that tensor alone.

    Keeps the direction within a tensor, not between tensors. Keras calls it `clipnorm`.

    Args:
        max_norm: the threshold for every tensor.
        p: which norm, 0.5 to inf.

    Raises:
        SpecError: a threshold that is not over 0, a p under 0.5.

    Example:
        >>> ClipTensorNorm(1.0).spec()
        'tensor-norm:1.0'
    """

    name: ClassVar[str] = "tensor-norm"
    examples: ClassVar[tuple[str, ...]] = ("tensor-norm:0.5",)

    @property
    def usual_clip_rate(self) -> float:
        return 1.0

    def decide(self, xp: Namespace, state: State, stats: GradientStats) -> tuple[State, Decision]:
        coef = coefficient(xp, stats.norms, self.max_norm)
        return state, Decision(threshold=xp.full_like(stats.total_norm, self.max_norm), coef=coef)
