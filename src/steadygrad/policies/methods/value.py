"""Clipping by value."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from steadygrad.policies.base import Decision, Policy, State, require_positive
from steadygrad.stats import GradientStats

if TYPE_CHECKING:
    from steadygrad.typing import Array, Namespace, Number


@dataclass(frozen=True)
class ClipValue(Policy):
    """Clamp every element to ``[-clip_value, clip_value]``: the direction changes.

    Args:
        clip_value: the largest magnitude an element may keep.

    Raises:
        SpecError: a value that is not over 0.

    Example:
        >>> import numpy as np
        >>> ClipValue(0.5).transform(np, np.array([-2.0, 0.25]))
        array([-0.5 ,  0.25])
    """

    name: ClassVar[str] = "value"
    examples: ClassVar[tuple[str, ...]] = ("value:0.5",)
    clip_value: float

    def __post_init__(self) -> None:
        require_positive(self, "clip_value")

    @property
    def usual_clip_rate(self) -> float:
        return 1.0

    @property
    def elementwise(self) -> bool:
        return True

    def decide(self, xp: Namespace, state: State, stats: GradientStats) -> tuple[State, Decision]:
        norm = stats.total_norm
        return state, Decision(xp.full_like(norm, self.clip_value), xp.ones_like(norm))

    def touches(self, xp: Namespace, stats: GradientStats) -> Array:
        above: Array = stats.max_abs > self.clip_value
        return above

    def transform(self, xp: Namespace, grad: Array, **beside: Number | None) -> Array:
        return xp.clip(grad, -self.clip_value, self.clip_value)
