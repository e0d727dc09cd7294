"""Groups by name pattern: each with its own policy, its own norm and its own state.

A group is itself decided by an ordinary policy over a slice of the stats, so
every method works in groups without knowing of them.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, TypeAlias

from steadygrad.errors import SpecError
from steadygrad.policies.base import Decision, Policy, Skip, State, constant
from steadygrad.policies.method_specs import parse_methods
from steadygrad.policies.methods.none import NoClip
from steadygrad.policies.wide import concat
from steadygrad.stats import GradientStats, combine_norms

if TYPE_CHECKING:
    from steadygrad.typing import Array, DType, Namespace

INF = float("inf")
BY_GROUP = "@group:"
"""Begins a pattern that means a parameter group of an optimizer."""


def matches(name: str, pattern: str) -> bool:
    """Whether a tensor's name fits a pattern, or one of several with ``|`` between them.

    Example:
        >>> matches("head.weight", "embed.*|head.*"), matches("head.weight", "head.bias")
        (True, False)
    """
    return any(fnmatchcase(name, each) for each in pattern.split("|"))


def escaped(name: str) -> str:
    """A pattern that only this name fits.

    Example:
        >>> matches("a[0]", escaped("a[0]")), matches("a0", escaped("a[0]"))
        (True, False)
    """
    return "".join(f"[{c}]" if c in "*?[" else c for c in name)


@dataclass(frozen=True)
class Groups(Policy):
    """Each tensor is governed by the first pattern that matches its name, or left alone.

    Args:
        members: ``((pattern, policy), ...)``; patterns as in `fnmatch`. A pattern ``@Muon``
            means all tensors of an optimizer of that class, and goes before the others;
            ``@group:muon`` means the parameter groups of a torch optimizer that are called so, or
            that set ``muon`` or ``use_muon``. Several patterns may stand with ``|`` between them.

    Raises:
        SpecError: no group, a group inside a group, or groups that want two different finite p
            (one read measures one p; the inf-norm comes with every read).

    Example:
        >>> Groups.of({"embed.*": "none", "*": "norm:1.0"}).for_tensor("head.weight")
        ClipNorm(max_norm=1.0, p=2.0)
        >>> Groups.of({"@Muon": "none", "*": "norm:1.0"}).for_optimizer("Muon")
        NoClip()
    """

    members: tuple[tuple[str, Policy], ...]

    def __post_init__(self) -> None:
        if not self.members:
            raise SpecError("clip groups are empty; type for example {'*': 'norm:1.0'}")
        if any(not pattern or pattern == "@" for pattern, _ in self.members):
            raise SpecError("a clip group needs a name pattern, such as '*' or '@Muon'")
        if any(isinstance(policy, Groups) for _, policy in self.members):
            raise SpecError("a clip group cannot hold groups; write all patterns in one mapping")
        if len(self._finite_norms()) > 1:
            raise SpecError(
                f"clip groups ask for the norms p={sorted(self._finite_norms())}; one read "
                "measures one finite p (and inf): use the same p in every group"
            )

    @classmethod
    def of(cls, groups: Mapping[str, str | Policy]) -> Groups:
        """Groups from ``{pattern: spec or policy}``."""
        if any(isinstance(v, str) and v.lstrip().startswith("{") for v in groups.values()):
            raise SpecError("a clip group cannot hold groups; write all patterns in one mapping")
        return cls(
            tuple((k, parse_methods(v) if isinstance(v, str) else v) for k, v in groups.items()),
        )

    def _finite_norms(self) -> set[float]:
        bearing = [p for _, p in self.members if not isinstance(p, NoClip) and not p.elementwise]
        return {p.norm_type for p in bearing} - {INF}

    @property
    def usual_clip_rate(self) -> float:
        return max(policy.usual_clip_rate for _, policy in self.members)

    @property
    def norm_type(self) -> float:
        finite = self._finite_norms()
        if finite:
            return finite.pop()
        all_inf = any(policy.norm_type == INF for _, policy in self.members)
        return INF if all_inf else 2.0

    @property
    def elementwise(self) -> bool:
        return any(policy.elementwise for _, policy in self.members)

    @property
    def needs(self) -> frozenset[str]:
        return frozenset().union(*(policy.needs for _, policy in self.members))

    @property
    def per_tensor(self) -> frozenset[str]:
        return frozenset(
            f"{index}/{key}"
            for index, (_, policy) in enumerate(self.members)
            for key in policy.per_tensor
        )

    def for_tensor(self, name: str) -> Policy:
        policies = (p.for_tensor(name) for pattern, p in self.members if matches(name, pattern))
        return next(policies, _NONE)

    def for_optimizer(self, class_name: str) -> Policy:
        """What is left for one optimizer: a member ``@Class`` governs all of a matching one."""
        classes = [(k, p) for k, p in self.members if k[0] == "@" and not k.startswith(BY_GROUP)]
        own = [p for k, p in classes if fnmatchcase(class_name, k[1:])]
        if own:
            return own[0]
        rest = tuple(member for member in self.members if member not in classes)
        return Groups(rest) if rest else _NONE

    def init(
        self, xp: Namespace, names: tuple[str, ...], float_dtype: DType, int_dtype: DType
    ) -> State:
        state: State = {}
        for number, policy, indices in _slices(self, names):
            inner = policy.init(xp, tuple(names[i] for i in indices), float_dtype, int_dtype)
            state.update({f"{number}/{key}": value for key, value in inner.items()})
        return state

    def decide(self, xp: Namespace, state: State, stats: GradientStats) -> tuple[State, Decision]:
        after, coefs, nearest = dict(state), [], None
        sound = xp.isfinite(stats.total_norm)
        order: list[int] = []
        for number, policy, indices in _slices(self, stats.names):
            part = _take(xp, stats, indices, policy.norm_type)
            inner = {k.split("/", 1)[1]: v for k, v in state.items() if k.startswith(f"{number}/")}
            inner, decision = policy.decide(xp, inner, part)
            for key, value in inner.items():  # a NaN in one group's tensors breaks the whole step
                after[f"{number}/{key}"] = xp.where(sound, value, state[f"{number}/{key}"])
            coefs.append(decision.coef * xp.ones_like(part.norms))
            order.extend(indices)
            nearest = _nearer(xp, nearest, part.total_norm, decision)
        assert nearest is not None
        places = sorted(range(len(order)), key=order.__getitem__)
        coef = xp.take(concat(xp, coefs), constant(xp, places, stats.norms), axis=0)
        return after, Decision(threshold=nearest[1], coef=coef, skip=nearest[2])

    def touches(self, xp: Namespace, stats: GradientStats) -> Array:
        flags: list[Array] = []
        order: list[int] = []
        for _, policy, indices in _slices(self, stats.names):
            part = _take(xp, stats, indices, policy.norm_type)
            touched = policy.touches(xp, part) if policy.elementwise else part.max_abs < 0
            flags.append(touched)
            order.extend(indices)
        places = sorted(range(len(order)), key=order.__getitem__)
        return xp.take(concat(xp, flags), constant(xp, places, stats.norms), axis=0)

    def spec(self) -> str:
        return "{" + ", ".join(f"{k}: {p.spec()}" for k, p in self.members) + "}"


_NONE = NoClip()

_Nearest: TypeAlias = "tuple[Array, Array, Skip]"
"""How near a group stands to its threshold, that threshold, and whether any group skips."""


@functools.lru_cache(maxsize=64)
def _slices(groups: Groups, names: tuple[str, ...]) -> list[tuple[int, Policy, tuple[int, ...]]]:
    """``(number, policy, tensor indices)`` of every group that holds a tensor, and of the rest."""
    policies = [policy for _, policy in groups.members] + [_NONE]
    patterns = [pattern for pattern, _ in groups.members] + ["*"]
    owner = [next(i for i, p in enumerate(patterns) if matches(name, p)) for name in names]
    return [
        (number, policy, tuple(i for i, o in enumerate(owner) if o == number))
        for number, policy in enumerate(policies)
        if number in owner
    ]


def _take(xp: Namespace, stats: GradientStats, indices: tuple[int, ...], p: float) -> GradientStats:
    where = xp.asarray(list(indices))

    def pick(array: Array) -> Array:
        return xp.take(array, where, axis=0)

    norms, max_abs, nonfinite = pick(stats.norms), pick(stats.max_abs), pick(stats.nonfinite)
    norm_type = stats.norm_type
    if p == INF and norm_type != INF:
        norms, norm_type = xp.where(nonfinite > 0, norms, max_abs), INF
    return GradientStats(
        names=tuple(stats.names[i] for i in indices),
        norms=norms,
        max_abs=max_abs,
        nonfinite=nonfinite,
        zeros=pick(stats.zeros),
        sizes=tuple(stats.sizes[i] for i in indices),
        total_norm=combine_norms(xp, norms, norm_type),
        norm_type=norm_type,
    )


def _either(xp: Namespace, left: Skip, right: Skip) -> Skip:
    """Plain False stays plain: an array of it would have to be read before a step."""
    if left is False or right is False:
        return right if left is False else left
    return xp.logical_or(left, right)


def _nearer(xp: Namespace, best: _Nearest | None, norm: Array, decision: Decision) -> _Nearest:
    """Keep the threshold of the group that stands highest against its own, and any group's skip."""
    bounded = xp.isfinite(norm) & xp.isfinite(decision.threshold)
    zero = xp.zeros_like(norm)
    low = xp.where(bounded, norm, zero)
    limit = xp.where(bounded, decision.threshold, xp.ones_like(norm))
    height = low / xp.maximum(limit, low * 1e-30)  # no farther, lest it overflow
    if best is None:
        return height, decision.threshold, decision.skip
    higher = height > best[0]
    return (
        xp.where(higher, height, best[0]),
        xp.where(higher, decision.threshold, best[1]),
        _either(xp, best[2], decision.skip),
    )
