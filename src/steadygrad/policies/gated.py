"""A policy under limits that are set from outside between two steps.

Where a step is compiled, whoever judges it cannot stand inside. The limits are arrays of the
policy's state, which every framework carries and lets the host write.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from steadygrad.policies.base import Decision, Policy, State, coefficient
from steadygrad.stats import GradientStats

if TYPE_CHECKING:
    from steadygrad.typing import Array, DType, Namespace, Number

LIMIT, CAP = "recovery_limit", "recovery_cap"
"""Keys of the state: the norm over which a step is dropped, the largest norm that is applied."""
LOSS_LIMIT, RATE = "recovery_loss_limit", "recovery_rate"
"""Keys that the framework's side heeds where it can: the loss over which a step is dropped, what an
optimizer's update is multiplied by."""
GATES: dict[str, float] = {LIMIT: math.inf, CAP: math.inf, LOSS_LIMIT: math.inf, RATE: 1.0}
"""The keys, and their values that change nothing."""


@dataclass(frozen=True)
class Gated(Policy):
    """What another policy decides, and a step dropped or held down by the limits in its state.

    Args:
        inner: the policy.

    Example:
        >>> import numpy as np
        >>> from steadygrad.policies import parse
        >>> gated = Gated(parse("none"))
        >>> one, none = np.array([5.0]), np.array([0])
        >>> stats = GradientStats(("w",), one, one, none, none, (1,), one[0])
        >>> state = gated.init(np, ("w",), np.float64, np.int64)
        >>> float(gated.decide(np, {**state, CAP: np.array(1.0)}, stats)[1].coef)
        0.2
        >>> bool(gated.decide(np, {**state, LIMIT: np.array(4.0)}, stats)[1].skip)
        True
    """

    inner: Policy

    @property
    def elementwise(self) -> bool:
        return self.inner.elementwise

    @property
    def needs(self) -> frozenset[str]:
        return self.inner.needs

    @property
    def per_tensor(self) -> frozenset[str]:
        return self.inner.per_tensor

    @property
    def usual_clip_rate(self) -> float:
        return self.inner.usual_clip_rate

    @property
    def norm_type(self) -> float:
        return self.inner.norm_type

    def for_tensor(self, name: str) -> Policy:
        return self.inner.for_tensor(name)

    def init(
        self, xp: Namespace, names: tuple[str, ...], float_dtype: DType, int_dtype: DType
    ) -> State:
        gates = {key: xp.full((), value, dtype=float_dtype) for key, value in GATES.items()}
        return {**self.inner.init(xp, names, float_dtype, int_dtype), **gates}

    def decide(self, xp: Namespace, state: State, stats: GradientStats) -> tuple[State, Decision]:
        own = {key: value for key, value in state.items() if key not in GATES}
        moved, decision = self.inner.decide(xp, own, stats)
        skip = stats.total_norm > state[LIMIT]
        after = {key: xp.where(skip, state[key], value) for key, value in moved.items()}
        after |= {key: state[key] for key in GATES}
        left = stats.total_norm  # at most that: no policy makes a norm larger
        if not len(xp.asarray(decision.coef).shape):
            left = left * decision.coef
        coef = decision.coef * coefficient(xp, left, state[CAP])
        if decision.skip is not False:
            skip = xp.logical_or(skip, decision.skip)
        return after, Decision(decision.threshold, coef, skip)

    def touches(self, xp: Namespace, stats: GradientStats) -> Array:
        return self.inner.touches(xp, stats)

    def transform(
        self,
        xp: Namespace,
        grad: Array,
        *,
        weight: Array | None = None,
        second_moment: Array | None = None,
        step: Number | None = None,
    ) -> Array:
        return self.inner.transform(xp, grad, weight=weight, second_moment=second_moment, step=step)

    def spec(self) -> str:
        return self.inner.spec()
