"""What methods share that hold a gradient against the optimizer's second moment."""

from __future__ import annotations

from typing import TYPE_CHECKING

from steadygrad.policies.base import Decision, Policy, State, no_threshold
from steadygrad.stats import GradientStats

if TYPE_CHECKING:
    from steadygrad.typing import Array, Namespace


class BySecondMoment(Policy):
    """A method that lowers elements which the optimizer's second moment does not bear out."""

    @property
    def elementwise(self) -> bool:
        return True

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"second_moment", "step"})

    def decide(self, xp: Namespace, state: State, stats: GradientStats) -> tuple[State, Decision]:
        return state, no_threshold(xp, stats)

    def touches(self, xp: Namespace, stats: GradientStats) -> Array:
        moving: Array = stats.max_abs > 0
        return moving
