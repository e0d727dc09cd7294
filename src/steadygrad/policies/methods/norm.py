"""Clipping by the global norm."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from steadygrad.policies.base import (
    Decision,
    Policy,
    State,
    coefficient,
    full_like,
    require_norm_type,
    require_positive,
)
from steadygrad.stats import GradientStats

if TYPE_CHECKING:
    from steadygrad.typing import Namespace


@dataclass(frozen=True)
class ClipNorm(Policy):
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
    max_norm: float
    p: float = field(default=2.0)

    def __post_init__(self) -> None:
        require_positive(self, "max_norm")
        require_norm_type(self, self.p)

    @property
    def norm_type(self) -> float:
        return self.p

    def decide(self, xp: Namespace, state: State, stats: GradientStats) -> tuple[State, Decision]:
        coef = coefficient(xp, stats.total_norm, self.max_norm)
        return state, Decision(threshold=full_like(xp, stats.total_norm, self.max_norm), coef=coef)
