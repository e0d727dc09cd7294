"""Several methods one after another: each meets the gradients as the one before left them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from steadygrad.errors import SpecError
from steadygrad.policies.base import Decision, Policy, Skip, State
from steadygrad.stats import GradientStats, combine_norms

if TYPE_CHECKING:
    from steadygrad.typing import Array, DType, Namespace, Number


@dataclass(frozen=True)
class Chain(Policy):
    """Methods in sequence; in a spec they are joined by ``+``, as in ``skip+norm:1.0``.

    Where one skips the step, those behind it do not hear of that step. A method that
    changes single elements can only stand last, because the norms it leaves are not known
    before it has acted.

    Args:
        members: at least two policies, in order.

    Raises:
        SpecError: fewer than two, a chain or groups inside, an elementwise method that is not
            last, or two different norms.

    Example:
        >>> from steadygrad.policies import parse
        >>> parse("skip+norm:1.0").spec()
        'skip+norm:1.0'
    """

    members: tuple[Policy, ...]

    def __post_init__(self) -> None:
        specs = [policy.spec() for policy in self.members]
        if len(self.members) < 2:
            raise SpecError(
                f"a chain needs two methods or more, got {specs}; for example skip+auto"
            )
        if any(not policy.name for policy in self.members):
            raise SpecError("a chain cannot hold chains or groups; put the chain into the groups")
        if any(policy.elementwise for policy in self.members[:-1]):
            raise SpecError(
                f"chain {'+'.join(specs)}: value, agc, spam and update-rms change single elements "
                "and can only stand last; for example norm:1.0+value:0.5"
            )
        if len(self._fixed_norms()) > 1:
            raise SpecError(f"chain {'+'.join(specs)}: all methods must use the same p")

    def _fixed_norms(self) -> set[float]:
        """The norms asked for by name; the other methods work on any."""
        return {policy.norm_type for policy in self.members if hasattr(policy, "p")}

    @property
    def elementwise(self) -> bool:
        return self.members[-1].elementwise

    @property
    def needs(self) -> frozenset[str]:
        return self.members[-1].needs

    @property
    def usual_clip_rate(self) -> float:
        return max(policy.usual_clip_rate for policy in self.members)

    @property
    def norm_type(self) -> float:
        return next(iter(self._fixed_norms()), 2.0)

    @property
    def per_tensor(self) -> frozenset[str]:
        return frozenset(f"{i}/{k}" for i, p in enumerate(self.members) for k in p.per_tensor)

    def for_tensor(self, name: str) -> Policy:
        """The last member where it changes single elements: only that acts on one tensor."""
        if not self.elementwise:
            return self
        return self.members[-1].for_tensor(name)

    def init(
        self, xp: Namespace, names: tuple[str, ...], float_dtype: DType, int_dtype: DType
    ) -> State:
        state: State = {}
        for i, policy in enumerate(self.members):
            inner = policy.init(xp, names, float_dtype, int_dtype)
            state.update({f"{i}/{key}": value for key, value in inner.items()})
        return state

    def decide(self, xp: Namespace, state: State, stats: GradientStats) -> tuple[State, Decision]:
        before, coef, after = stats, None, dict(state)
        skip: Skip = False
        threshold = xp.full_like(stats.total_norm, float("inf"))
        for i, policy in enumerate(self.members):
            before = stats if coef is None else _after(xp, stats, coef)
            inner, decision = policy.decide(xp, _own(state, i), before)
            for key, value in inner.items():
                name = f"{i}/{key}"
                after[name] = value if skip is False else xp.where(skip, state[name], value)
            if not policy.elementwise:
                threshold = xp.minimum(threshold, decision.threshold)
            coef = decision.coef if coef is None else coef * decision.coef
            if decision.skip is not False:
                skip = decision.skip if skip is False else xp.logical_or(skip, decision.skip)
        assert coef is not None  # a chain has members
        if self.elementwise:
            coef = coef * xp.ones_like(stats.norms)  # act layers scale by tensor before elements
        return after, Decision(threshold, coef, skip)

    def touches(self, xp: Namespace, stats: GradientStats) -> Array:
        return self.members[-1].touches(xp, stats)

    def transform(
        self,
        xp: Namespace,
        grad: Array,
        *,
        weight: Array | None = None,
        second_moment: Array | None = None,
        step: Number | None = None,
    ) -> Array:
        return self.members[-1].transform(
            xp, grad, weight=weight, second_moment=second_moment, step=step
        )

    def spec(self) -> str:
        return "+".join(policy.spec() for policy in self.members)


def _own(state: State, number: int) -> State:
    return dict(_prefixed(state, f"{number}/"))


def _prefixed(state: State, prefix: str) -> Iterator[tuple[str, Array]]:
    return ((k[len(prefix) :], v) for k, v in state.items() if k.startswith(prefix))


def _after(xp: Namespace, stats: GradientStats, coef: Array) -> GradientStats:
    """The figures once every tensor has been multiplied by ``coef``."""
    norms = stats.norms * coef
    if len(coef.shape):
        total = combine_norms(xp, norms, stats.norm_type)
    else:
        total = stats.total_norm * coef
    return dataclasses.replace(stats, norms=norms, max_abs=stats.max_abs * coef, total_norm=total)
