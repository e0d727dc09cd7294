"""One step of clipping over any traced array library: JAX, TensorFlow, Keras' backends.

These libraries differ in how a norm is taken exactly and how an array is scaled; an
`ArrayLibrary` says how. What happens in which order is written here once, without a Python
branch on a value, so that it can be traced.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, NamedTuple, Protocol

from steadygrad.policies.base import Decision, Policy, State
from steadygrad.policies.choice import Choice
from steadygrad.policies.gated import Gated
from steadygrad.policies.groups import Groups
from steadygrad.stats import GradientStats, combine_norms
from steadygrad.vocabulary import OnNonfinite

if TYPE_CHECKING:
    from steadygrad.typing import Array, Namespace

NONE, CLIP, SKIP = 0, 1, 2
"""Codes of `steadygrad.vocabulary.ACTIONS`."""


class ArrayLibrary(Protocol):
    """What an array library is asked to do; all but `scope` is called inside `scope`."""

    @property
    def xp(self) -> Namespace:
        """The array namespace."""

    def scope(self) -> AbstractContextManager[None]:
        """A context in which float64 exists."""

    def norms(self, leaves: Sequence[Array], norm_type: float) -> tuple[Array, Array]:
        """p-norm (float64) and number of non-finite elements of each leaf."""

    def figures(
        self, leaves: Sequence[Array], norm_type: float
    ) -> tuple[Array, Array, Array, Array]:
        """p-norm and largest finite magnitude (float64), non-finite elements and zeros of each."""

    def widen(self, x: Array) -> Array:
        """A copy in float64."""

    def narrow(self, x: Array, like: Array) -> Array:
        """A float64 array rounded once to the dtype of ``like``."""

    def scaled(self, leaves: Sequence[Array], coef: Array) -> list[Array]:
        """Each leaf times ``coef``, 0-d or one a leaf, rounded once; bit-identical at 1."""

    def computed_once(self, x: Array) -> Array:
        """``x``, computed once: a compiler must not repeat it in the code of every leaf."""

    def cleaned(self, leaf: Array) -> Array:
        """``leaf`` with non-finite elements replaced by 0."""

    def size(self, leaf: Array) -> int:
        """Number of elements, as the trace knows it."""


@dataclass(frozen=True)
class StepGradients:
    """What one step brings.

    Attributes:
        leaves: the gradients.
        names: one name a leaf.
        beside: what `transform` reads (`Policy.needs`), one entry a leaf.
    """

    leaves: Sequence[Array]
    names: tuple[str, ...]
    beside: Mapping[str, Sequence[Array | None]] = field(default_factory=dict)


@dataclass(frozen=True)
class Stepped:
    """What came of one step; figures are 0-d arrays in float64.

    Attributes:
        leaves: the gradients to apply; of no use where ``skip``, or blank.
        state: the policy's next state.
        stats: figures before clipping.
        threshold: the `max_norm` in force.
        coef: norm of ``leaves`` over the norm before; 1 where skipped.
        cosine: between before and after; NaN where the norms do not tell.
        action: code of the action.
        skip: whether the step must be dropped whole.
        nonfinite: number of non-finite elements over all leaves.
    """

    leaves: list[Array]
    state: State
    stats: GradientStats
    threshold: Array
    coef: Array
    cosine: Array
    action: Array
    skip: Array
    nonfinite: Array


def measure(
    engine: ArrayLibrary,
    leaves: Sequence[Array],
    names: tuple[str, ...],
    norm_type: float,
    full: bool,
) -> GradientStats:
    """The figures of a list of gradients; call it inside the engine's scope.

    Args:
        engine: the array library.
        leaves: the gradients.
        names: one name a leaf.
        norm_type: p of the norms.
        full: also read extremes and zeros; else these are NaN and -1.

    Returns:
        The stats, in float64.
    """
    xp = engine.xp
    if full:
        norms, max_abs, nonfinite, zeros = engine.figures(leaves, norm_type)
    else:
        norms, nonfinite = engine.norms(leaves, norm_type)
        max_abs, zeros = xp.full_like(norms, float("nan")), xp.full_like(nonfinite, -1)
    total = combine_norms(xp, norms, norm_type) if leaves else xp.sum(norms)
    sizes = tuple(engine.size(leaf) for leaf in leaves)
    return GradientStats(names, norms, max_abs, nonfinite, zeros, sizes, total, norm_type)


def step(
    engine: ArrayLibrary,
    choice: Choice,
    state: State,
    step_gradients: StepGradients,
    full: bool = False,
    blank: bool = False,
) -> Stepped:
    """Measure, decide and act on one step's gradients; call it inside the engine's scope.

    Args:
        engine: the array library.
        choice: what to do with them; ``on_nonfinite`` is not ``raise``.
        state: the policy's, in float64.
        step_gradients: the gradients.
        full: also read extremes and zeros.
        blank: hand on zeros where the step is skipped; for an engine whose `scaled` gives
            zeros for 0, whatever a leaf holds.

    Returns:
        What came of it.
    """
    xp, policy = engine.xp, choice.policy
    full = full or _reads_extremes(policy)
    stats = usable = measure(
        engine, step_gradients.leaves, step_gradients.names, policy.norm_type, full
    )
    nonfinite = xp.sum(stats.nonfinite)
    if choice.on_nonfinite == "zero":
        step_gradients = replace(
            step_gradients, leaves=[engine.cleaned(leaf) for leaf in step_gradients.leaves]
        )
        usable = measure(
            engine, step_gradients.leaves, step_gradients.names, policy.norm_type, full
        )
    after, decision = policy.decide(xp, state, usable)
    broken, skip = _skips(xp, choice.on_nonfinite, decision, usable, nonfinite)
    if choice.on_nonfinite == "skip":
        after = {key: xp.where(broken, state[key], value) for key, value in after.items()}
    left = _act(engine, policy, decision, usable, step_gradients, skip if blank else None)
    one = xp.ones_like(stats.total_norm)
    action = xp.where(skip, SKIP, xp.where(left.clipped, CLIP, NONE))
    return Stepped(
        leaves=left.leaves,
        state=after,
        stats=stats,
        threshold=decision.threshold * one,
        coef=xp.where(skip, one, left.coef),
        cosine=xp.where(skip, one, left.cosine),
        action=action,
        skip=skip,
        nonfinite=nonfinite,
    )


def _reads_extremes(policy: Policy) -> bool:
    plain = policy.inner if isinstance(policy, Gated) else policy
    return policy.elementwise or isinstance(plain, Groups)


def _skips(
    xp: Namespace,
    on_nonfinite: OnNonfinite,
    decision: Decision,
    usable: GradientStats,
    nonfinite: Array,
) -> tuple[Array, Array]:
    """Whether a step is broken, and whether it is dropped; 0-d.

    A norm beyond float64 cannot be clipped: it counts as broken, though its elements are finite.
    """
    beyond = xp.logical_not(xp.isfinite(usable.total_norm))
    broken = xp.logical_or(nonfinite > 0, beyond)
    skip = broken & (nonfinite < 0) if decision.skip is False else xp.asarray(decision.skip)
    if on_nonfinite == "skip":
        skip = xp.logical_or(skip, broken)
    elif on_nonfinite == "zero":
        skip = xp.logical_or(skip, beyond)
    return broken, skip


class _Left(NamedTuple):
    """What is left of the gradients: the leaves, and how they compare with those before."""

    leaves: list[Array]
    coef: Array
    cosine: Array
    clipped: Array


def _act(
    engine: ArrayLibrary,
    policy: Policy,
    decision: Decision,
    usable: GradientStats,
    step_gradients: StepGradients,
    blank: Array | None,
) -> _Left:
    """Do what was decided; where ``blank``, leave zeros."""
    xp, coef = engine.xp, decision.coef
    single = not policy.elementwise and len(xp.asarray(coef).shape) == 0
    by = coefs = coef if single else coef * xp.ones_like(usable.norms)
    if blank is not None:
        by = xp.where(blank, xp.zeros_like(by), by)
    leaves = engine.scaled(step_gradients.leaves, engine.computed_once(by))
    if policy.elementwise:
        return _elementwise(engine, policy, step_gradients, leaves, usable)
    if single:
        return _Left(leaves, coef, xp.ones_like(coef), coef < 1.0)
    ratios = usable.norms / unit_of(xp, usable.norms)
    left = coefs * ratios
    return _Left(leaves, *compare(xp, usable, left, left * ratios, xp.any(coefs < 1.0)))


def _elementwise(
    engine: ArrayLibrary,
    policy: Policy,
    step_gradients: StepGradients,
    scaled: Sequence[Array],
    stats: GradientStats,
) -> _Left:
    """Transform the leaves that an elementwise policy governs, and compare with before."""
    xp = engine.xp
    left, dots, changes = [], [], []
    unit = unit_of(xp, stats.norms)
    for index, (leaf, name) in enumerate(zip(scaled, stats.names, strict=True)):
        own = policy.for_tensor(name)
        if own.elementwise:
            leaf = _transform(
                engine, own, leaf, {n: step_gradients.beside[n][index] for n in own.needs}
            )
        left.append(leaf)
        was, now = engine.widen(step_gradients.leaves[index]), engine.widen(leaf)
        dots.append(xp.sum((was / unit) * (now / unit)))
        changes.append(xp.any(was != now))
    after, _ = engine.norms(left, stats.norm_type)
    clipped = xp.any(xp.stack(changes))
    return _Left(left, *compare(xp, stats, after / unit, xp.stack(dots), clipped))


def _transform(
    engine: ArrayLibrary, policy: Policy, leaf: Array, beside: Mapping[str, Array | None]
) -> Array:
    """One leaf after an elementwise method; left alone until there is a second moment."""
    wide = {key: None if v is None else engine.widen(v) for key, v in beside.items()}
    moved = engine.narrow(policy.transform(engine.xp, engine.widen(leaf), **wide), leaf)
    seen = wide.get("step")
    return moved if seen is None else engine.xp.where(seen > 0, moved, leaf)


def unit_of(xp: Namespace, norms: Array) -> Array:
    """The largest norm; 1 where that is 0 or not finite. Squares of ratios to it are finite."""
    largest = xp.max(norms)
    usable = xp.logical_and(xp.isfinite(largest), largest > 0)
    return xp.where(usable, largest, xp.ones_like(largest))


def compare(
    xp: Namespace, stats: GradientStats, left: Array, dots: Array, clipped: Array
) -> tuple[Array, Array, Array]:
    """Join per-tensor figures into one coefficient and one cosine.

    Args:
        xp: the array namespace.
        stats: the figures before.
        left: norms after, ``[tensors]``, in units of the largest norm before.
        dots: inner products of before and after, in that unit squared.
        clipped: 0-d, whether anything changed.

    Returns:
        Coefficient and cosine, 1 where nothing changed, and ``clipped``.
    """
    before = combine_norms(xp, stats.norms / unit_of(xp, stats.norms), stats.norm_type)
    after = combine_norms(xp, left, stats.norm_type)
    one = xp.ones_like(before)
    product = before * after
    cosine = xp.clip(xp.sum(dots) / xp.where(product > 0, product, one), -1.0, 1.0)
    if stats.norm_type != 2.0:  # the angle is a matter of 2-norms
        cosine = one * float("nan")
    changed = xp.logical_and(clipped, before > 0)
    coef = xp.where(changed, after / xp.where(changed, before, one), one)
    tells = xp.logical_and(changed, product > 0)
    return coef, xp.where(tells, cosine, one), clipped
