"""Observe only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from steadygrad.policies.base import Decision, Policy, State, full_like
from steadygrad.stats import GradientStats

if TYPE_CHECKING:
    from steadygrad.typing import Namespace


@dataclass(frozen=True)
class NoClip(Policy):
    """Measure and record, and leave every gradient as it is.

    Example:
        >>> NoClip().spec()
        'none'
    """

    name: ClassVar[str] = "none"
    examples: ClassVar[tuple[str, ...]] = ("none",)

    def decide(self, xp: Namespace, state: State, stats: GradientStats) -> tuple[State, Decision]:
        norm = stats.total_norm
        return state, Decision(full_like(xp, norm, float("inf")), coef=full_like(xp, norm, 1.0))
