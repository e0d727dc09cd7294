"""A threshold that moves with the step."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from steadygrad.errors import SpecError
from steadygrad.policies.base import (
    Decision,
    Policy,
    State,
    coefficient,
    require_norm_type,
    require_positive,
)
from steadygrad.policies.checks import require_choice, require_count
from steadygrad.policies.wide import cast
from steadygrad.stats import GradientStats

if TYPE_CHECKING:
    from steadygrad.typing import Array, DType, Namespace


@dataclass(frozen=True)
class NormSchedule(Policy):
    """Clip by the global norm at a threshold that goes from ``max_norm`` to ``to``.

    It stays at ``max_norm`` for ``wait`` steps, then moves for ``over`` steps, then stays:
    ``shape=exp`` by equal factors, ``linear`` by equal differences. A threshold that starts
    high and falls is a warm-up of the clipping. Steps with a non-finite norm do not count.

    Args:
        max_norm: threshold at the start.
        to: threshold at the end.
        over: number of steps between the two.
        wait: number of steps before it moves.
        shape: ``exp`` or ``linear``.
        p: which norm, 0.5 to inf.

    Raises:
        SpecError: a parameter out of its range.

    Example:
        >>> NormSchedule(10.0, to=1.0, over=1000).spec()
        'norm-schedule:10.0,over=1000'
    """

    name: ClassVar[str] = "norm-schedule"
    examples: ClassVar[tuple[str, ...]] = ("norm-schedule:4.0,to=0.5,over=40",)
    max_norm: float
    to: float = 1.0
    over: int = 100
    wait: int = 0
    shape: str = "exp"
    p: float = 2.0

    def __post_init__(self) -> None:
        require_positive(self, "max_norm", "to")
        require_count(self, "over")
        require_count(self, "wait", least=0)
        require_choice(self, "shape", ("exp", "linear"))
        require_norm_type(type(self).__name__, self.p)
        if math.isinf(self.max_norm) or math.isinf(self.to):
            raise SpecError(
                f"NormSchedule: both ends must be finite, got {self.max_norm} and {self.to}; "
                "for example norm-schedule:10.0,to=1.0,over=1000"
            )

    @property
    def norm_type(self) -> float:
        return self.p

    def init(
        self, xp: Namespace, names: tuple[str, ...], float_dtype: DType, int_dtype: DType
    ) -> State:
        return {"count": xp.zeros((), dtype=int_dtype)}

    def decide(self, xp: Namespace, state: State, stats: GradientStats) -> tuple[State, Decision]:
        norm, count = stats.total_norm, state["count"]
        gone = cast(xp, count - self.wait, norm.dtype) / self.over
        threshold = self._at(xp, xp.clip(gone, 0.0, 1.0))
        after = {"count": xp.where(xp.isfinite(norm), count + 1, count)}
        return after, Decision(threshold, coefficient(xp, norm, threshold))

    def _at(self, xp: Namespace, gone: Array) -> Array:
        """The threshold after ``gone`` of the way, 0 to 1."""
        if self.shape == "exp":
            start, end = math.log(self.max_norm), math.log(self.to)
            return xp.exp(start + (end - start) * gone)
        return self.max_norm + (self.to - self.max_norm) * gone
