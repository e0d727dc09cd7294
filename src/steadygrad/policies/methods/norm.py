"""Clipping by the global norm."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from steadygrad.policies.base import Decision, State, coefficient, full_like
from steadygrad.policies.fixed_norm import ByFixedNorm
from steadygrad.stats import GradientStats

if TYPE_CHECKING:
    from steadygrad.typing import Namespace


@dataclass(frozen=True)
class ClipNorm(ByFixedNorm):
    """Scale all gradients by ``min(1, max_norm / total_norm)``: the direction is kept.

    Args:
        max_norm: the threshold, in units of the gradient's norm; inf measures only.
        p: which norm, 0.5 to inf.

    Raises:
        SpecError: a threshold that is not over 0, a p under 0.5.

    Example:
        >>> ClipNorm(1.0).spec(), ClipNorm(0.5, p=float("inf")).spec()
        ('norm:1.0', 'norm:0.5,p=inf')

    References:
        Pascanu, Mikolov, Bengio. On the difficulty of training recurrent neural
        networks. ICML 2013, algorithm 1.
    """

    name: ClassVar[str] = "norm"
    examples: ClassVar[tuple[str, ...]] = ("norm:1.0", "norm:0.7,p=inf")

    def decide(self, xp: Namespace, state: State, stats: GradientStats) -> tuple[State, Decision]:
        coef = coefficient(xp, stats.total_norm, self.max_norm)
        return state, Decision(threshold=full_like(xp, stats.total_norm, self.max_norm), coef=coef)
