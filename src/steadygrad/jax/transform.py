"""`clip` and `guard`: the policies as optax transformations.

A transformation in a chain hands on updates and cannot keep the optimizer behind it
from acting: on a non-finite step `clip` can only hand on zeros, and Adam still decays
its moments with them. Dropping a step whole takes a wrapper around the optimizer:
`guard`. Figures are computed in float64 and kept in float32, because eager code
outside (a `jax.tree.map` over the state) would truncate float64 with a warning.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from steadygrad.errors import NoGradientsWarning, SpecError, UsageError
from steadygrad.jax._varying import varying_axes
from steadygrad.jax._x64 import wide, widen
from steadygrad.jax.dropping import dropped_where, slowed
from steadygrad.jax.engine import JaxEngine, floating_leaves
from steadygrad.policies import Policy
from steadygrad.policies.choice import Choice, Clip, policy_of, resolve
from steadygrad.policies.gated import GATES, LIMIT, LOSS_LIMIT, RATE, Gated
from steadygrad.policies.groups import Groups
from steadygrad.policies.idle_groups import idle_patterns
from steadygrad.policies.stepping import StepGradients, Stepped, step
from steadygrad.runlog.notice import warn

if TYPE_CHECKING:
    from jax.typing import ArrayLike

    from steadygrad.typing import PyTree

Axes = str | tuple[str, ...] | Mapping[str, str | tuple[str, ...]] | None


class ClipState(NamedTuple):
    """What a clipping transformation knows after a step; all arrays, 0-d unless said.

    Attributes:
        step: number of steps taken, skipped ones included, int32.
        norm: total norm before clipping, float32 (inf for a finite one over 3.4e38).
        threshold: the `max_norm` in force, float32.
        coef: norm after over norm before, float32.
        cosine: between before and after, float32.
        action: 0 none, 1 clip, 2 skip; int32.
        nonfinite: number of NaN and inf elements, int32.
        leaf_norms: norm of each leaf, ``[leaves]`` float32, in the order of ``names``.
        leaf_max_abs: largest finite magnitude, ``[leaves]``; empty unless ``details=True``.
        leaf_nonfinite: NaN and inf elements, ``[leaves]`` int32.
        leaf_zeros: zero elements, ``[leaves]`` int32; empty unless ``details=True``.
        policy: the policy's memory.
        names: the leaves' names, as the keys of empty containers: no array at all.
    """

    step: jax.Array
    norm: jax.Array
    threshold: jax.Array
    coef: jax.Array
    cosine: jax.Array
    action: jax.Array
    nonfinite: jax.Array
    leaf_norms: jax.Array
    leaf_max_abs: jax.Array
    leaf_nonfinite: jax.Array
    leaf_zeros: jax.Array
    policy: dict[str, jax.Array]
    names: tuple[dict[str, tuple[()]], ...]


class GuardState(NamedTuple):
    """State of `guard`: the figures of the last step, and the inner optimizer's state."""

    clip: ClipState
    inner: PyTree


def clip(
    clip: Clip = "norm:1.0",
    *,
    on_nonfinite: str | None = None,
    axis_name: Axes = None,
    details: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """Clip updates by any policy, as a transformation for `optax.chain`.

    On a step with NaN or inf it hands on zeros: what follows in the chain still sees
    a step (Adam decays its moments). To drop such a step whole, use `guard`.

    Args:
        clip: a spec such as ``"norm:1.0"``, a policy, or ``{name pattern: spec}``.
        on_nonfinite: ``"skip"`` (zeros; the default, save for ``"none"``), ``"zero"``
            (non-finite elements become 0) or ``"propagate"``.
        axis_name: inside `shard_map`, the mesh axes over which leaves are split, or
            ``{name pattern: axes}``. Arrays that JAX shards by itself need nothing.
        details: also keep each leaf's largest magnitude and number of zeros.

    Returns:
        A transformation whose state is a `ClipState`.

    Raises:
        SpecError: a spec that cannot be read.
        UsageError: an option that does not exist.

    Example:
        >>> import jax.numpy as jnp, optax, steadygrad.jax as sg
        >>> tx = optax.chain(sg.clip("norm:1.0"), optax.sgd(1.0))
        >>> params = {"w": jnp.zeros(2)}
        >>> updates, state = tx.update({"w": jnp.array([3.0, 4.0])}, tx.init(params))
        >>> updates["w"], float(state[0].norm)
        (Array([-0.6, -0.8], dtype=float32), 5.0)
    """
    clipper = _Clipper(clip, on_nonfinite, axis_name, details, blank=True)

    def update(
        updates: PyTree, state: ClipState, params: PyTree = None, **_: object
    ) -> tuple[PyTree, ClipState]:
        result, after, skip = clipper.run(updates, state, params, None)
        return result if skip is None else jax.tree.map(lambda x: _blank(x, skip), result), after

    return optax.GradientTransformationExtraArgs(clipper.init, update)


def guard(
    inner: optax.GradientTransformation,
    clip: Clip = "norm:1.0",
    *,
    on_nonfinite: str | None = None,
    axis_name: Axes = None,
    details: bool = False,
    recover: object = None,
) -> optax.GradientTransformationExtraArgs:
    """Clip in front of an optimizer, and drop a non-finite step whole.

    On such a step updates are zero and the optimizer's state stays bit-identical, while
    the figures in `GuardState.clip` stay live. `optax.MultiSteps` around it must be given
    ``should_skip_update_fn=optax.skip_not_finite``, or a NaN micro-batch stays in its sums.

    Args:
        inner: the optimizer.
        clip: a spec such as ``"norm:1.0"``, a policy, or ``{name pattern: spec}``.
        on_nonfinite: as for `clip`.
        axis_name: as for `clip`.
        details: as for `clip`.
        recover: the `Recovery` whose limits this guard is to heed; None for none. With it, give
            ``update`` the loss, as ``value=loss``, and steps whose loss spikes are dropped too.

    Returns:
        A transformation whose state is a `GuardState`.

    Raises:
        SpecError: a spec that cannot be read.
        UsageError: an option that does not exist, or that does not go with another.

    Example:
        >>> import jax.numpy as jnp, optax, steadygrad.jax as sg
        >>> tx = sg.guard(optax.adam(1e-3), clip="norm:1.0")
        >>> params = {"w": jnp.zeros(2)}
        >>> updates, state = tx.update({"w": jnp.array([jnp.nan, 4.0])}, tx.init(params), params)
        >>> updates["w"], int(state.clip.action), int(state.inner[0].count)
        (Array([0., 0.], dtype=float32), 2, 0)
    """
    if not (hasattr(inner, "init") and hasattr(inner, "update")):
        raise UsageError(
            f"guard wraps an optimizer of optax, got {inner!r}; type for example "
            "steadygrad.jax.guard(optax.adam(1e-3), clip='norm:1.0')"
        )
    heeds = recover is not None
    if heeds and on_nonfinite not in (None, "skip"):
        raise UsageError(
            f"recover= does not go with on_nonfinite={on_nonfinite!r}: it decides itself what is "
            "done with NaN and inf"
        )
    if isinstance(recover, (str, bool)):
        raise UsageError(
            f"recover must be a Recovery, got {recover!r}; type recovery = steadygrad.jax.Recovery("
            f"{recover if isinstance(recover, str) else 'auto'!r}), recover=recovery, and call "
            "recovery.after_step(params, opt_state, loss) after each step"
        )
    on_nonfinite = "skip" if heeds else on_nonfinite
    clipper = _Clipper(clip, on_nonfinite, axis_name, details, gated=heeds)
    wrapped = optax.with_extra_args_support(inner)

    def init(params: PyTree) -> GuardState:
        return GuardState(clipper.init(params), wrapped.init(params))

    def update(
        updates: PyTree, state: GuardState, params: PyTree = None, **extra: object
    ) -> tuple[PyTree, GuardState]:
        before = gate_loss(state.clip, _loss_in(extra)) if heeds else state.clip
        clipped, after, skip = clipper.run(updates, before, params, state.inner)
        if heeds:
            after = keep_gates(after, state.clip)
        if skip is None:
            new, moved = wrapped.update(clipped, state.inner, params, **extra)
            return new, GuardState(after, moved)

        def go(gradients: PyTree, inner_state: PyTree) -> tuple[PyTree, PyTree]:
            moved: tuple[PyTree, PyTree] = wrapped.update(gradients, inner_state, params, **extra)
            return moved

        new, moved = dropped_where(skip, go, clipped, state.inner)
        if heeds:
            new = slowed(new, state.clip.policy[RATE])
        return new, GuardState(after, moved)

    return optax.GradientTransformationExtraArgs(init, update)


def _loss_in(extra: Mapping[str, object]) -> ArrayLike | None:
    """What optax calls ``value``: the loss."""
    loss: ArrayLike | None = extra.get("value")
    return loss


def gate_loss(state: ClipState, loss: ArrayLike | None) -> ClipState:
    """A state whose limit drops every step where the loss is over its own, or not finite."""
    if loss is None:
        return state
    limit, highest = state.policy[LIMIT], state.policy[LOSS_LIMIT]
    struck = jnp.logical_not(jnp.isfinite(loss)) | (loss > highest)
    closed = jnp.where(jnp.squeeze(struck), jnp.full_like(limit, -1.0), limit)
    return state._replace(policy={**state.policy, LIMIT: closed})


def keep_gates(state: ClipState, before: ClipState) -> ClipState:
    """A state with the limits of the one before: only the host sets them."""
    gates = {key: before.policy[key] for key in GATES}
    return state._replace(policy={**state.policy, **gates})


def _traceable(clip: Clip, on_nonfinite: str | None) -> Choice:
    """`resolve`, for code that cannot raise and whose optimizers have no class."""
    policy = policy_of(clip)
    patterns = [name for name, _ in policy.members] if isinstance(policy, Groups) else []
    named = next((pattern for pattern in patterns if pattern.startswith("@")), None)
    if named is not None:
        raise SpecError(
            f"clip group {named!r} names an optimizer class, and optax has none; group by "
            "parameter name, or wrap each transformation in its own guard inside "
            "optax.multi_transform"
        )
    choice = resolve(policy, on_nonfinite)
    if choice.on_nonfinite == "raise":
        raise UsageError(
            "on_nonfinite='raise': compiled code cannot raise; read the action from the state "
            "and raise outside `jit`"
        )
    return choice


class _Clipper:
    """What `clip` and `guard` share."""

    def __init__(
        self,
        spec: Clip,
        on_nonfinite: str | None,
        axis_name: Axes,
        details: bool,
        blank: bool = False,
        gated: bool = False,
    ) -> None:
        choice = _traceable(spec, on_nonfinite)
        self.choice = replace(choice, policy=Gated(choice.policy)) if gated else choice
        self.asked, self.policy = choice.policy, self.choice.policy
        self.may_skip = choice.may_skip
        self.axis_name = axis_name
        self.details = details
        self.blank = blank and self.may_skip

    def init(self, params: PyTree) -> ClipState:
        names, _, _ = floating_leaves(params)
        for sentence in self._idle(names):
            warn(sentence, NoGradientsWarning)
        zero, none = jnp.zeros((), jnp.float32), jnp.zeros((), jnp.int32)
        per_leaf = jnp.zeros((len(names),), jnp.float32)
        extra = per_leaf if self.details else per_leaf[:0]
        memory = self.policy.init(jnp, names, jnp.float32, jnp.int32)
        state = ClipState(
            step=none,
            norm=zero,
            threshold=zero + jnp.inf,
            coef=zero + 1,
            cosine=zero + 1,
            action=none,
            nonfinite=none,
            leaf_norms=per_leaf,
            leaf_max_abs=extra,
            leaf_nonfinite=per_leaf.astype(jnp.int32),
            leaf_zeros=extra.astype(jnp.int32),
            policy={key: jnp.asarray(value) for key, value in memory.items()},
            names=tuple({name: ()} for name in names),
        )
        # copies: one buffer cannot be donated twice
        distinct: ClipState = jax.tree.map(jnp.array, state)
        return distinct

    def _idle(self, names: tuple[str, ...]) -> list[str]:
        """What of this governs nothing, as sentences."""
        if not names:
            return [
                "init was given a pytree without floating arrays, so nothing is clipped or "
                "measured; type tx.init(params) with the arrays that jax.grad differentiates"
            ]
        axes = self.axis_name if isinstance(self.axis_name, Mapping) else {}
        split = [
            f"the pattern {pattern!r} of axis_name matches none of the {len(names)} parameters, so "
            f"none of them counts as split by it; names are such as {names[0]!r}"
            for pattern in axes
            if not any(fnmatchcase(name, pattern) for name in names)
        ]
        return idle_patterns(self.asked, names) + split

    def run(
        self, updates: PyTree, state: ClipState, params: PyTree, inner: PyTree
    ) -> tuple[PyTree, ClipState, jax.Array | None]:
        """Clipped updates, the next state, and whether to skip (None where that cannot be).

        Differentiated as a whole: the rules of the float64 operations inside must run where
        float64 exists, which the caller's backward pass does not know.
        """
        if len(floating_leaves(updates)[0]) != len(state.names):
            raise UsageError(
                f"updates hold {len(floating_leaves(updates)[0])} floating arrays, init was given "
                f"{len(state.names)}; pass init the same tree as the gradients will have"
            )

        def forward(
            updates: PyTree, state: ClipState, params: PyTree, inner: PyTree
        ) -> tuple[PyTree, tuple[PyTree, ...]]:
            return self._act(updates, state, params, inner), (updates, state, params, inner)

        def backward(operands: tuple[PyTree, ...], cotangents: PyTree) -> PyTree:
            with wide():
                return jax.vjp(self._act, *operands)[1](cotangents)

        act = jax.custom_vjp(self._act)
        act.defvjp(forward, backward)
        clipped, after, skip = act(updates, state, params, inner)
        return clipped, after, skip if self.may_skip else None

    def _act(
        self, updates: PyTree, state: ClipState, params: PyTree, inner: PyTree
    ) -> tuple[PyTree, ClipState, jax.Array]:
        names, leaves, rebuild = floating_leaves(updates)
        with wide():
            beside = self._beside(params, inner, updates)
            memory = {k: self._widened(v) for k, v in state.policy.items()}
            engine = JaxEngine(_splits(self.axis_name, names, leaves))
            step_gradients = StepGradients(leaves, names, beside)
            done = step(engine, self.choice, memory, step_gradients, self.details, self.blank)
            skip = engine.computed_once(done.skip)
            return rebuild(done.leaves), self.after(state, done), skip

    @staticmethod
    def _widened(value: jax.Array) -> jax.Array:
        return widen(value) if jnp.issubdtype(value.dtype, jnp.floating) else value

    def _beside(self, params: PyTree, inner: PyTree, updates: PyTree) -> dict[str, list[jax.Array]]:
        columns: dict[str, list[jax.Array]] = {}
        count = len(floating_leaves(updates)[0])
        if "weight" in self.policy.needs:
            if params is None:
                raise UsageError(
                    f"{self.policy.spec()} reads the weights; type "
                    "tx.update(grads, state, params) with the parameters"
                )
            columns["weight"] = floating_leaves(params)[1]
        if "second_moment" in self.policy.needs:
            moments, seen = second_moments(inner, self.policy)
            columns["second_moment"], columns["step"] = moments, [seen] * count
        return columns

    def after(self, state: ClipState, done: Stepped) -> ClipState:
        """The next state."""
        stats = done.stats
        memory = {k: _as(v, state.policy[k]) for k, v in done.state.items()}
        return state._replace(
            step=state.step + 1,
            norm=_as(stats.total_norm, state.norm),
            threshold=_as(done.threshold, state.threshold),
            coef=_as(done.coef, state.coef),
            cosine=_as(done.cosine, state.cosine),
            action=_as(done.action, state.action),
            nonfinite=_as(done.nonfinite, state.nonfinite),
            leaf_norms=_as(stats.norms, state.leaf_norms),
            leaf_nonfinite=_as(stats.nonfinite, state.leaf_nonfinite),
            leaf_max_abs=_as(stats.max_abs[: len(state.leaf_max_abs)], state.leaf_max_abs),
            leaf_zeros=_as(stats.zeros[: len(state.leaf_zeros)], state.leaf_zeros),
            policy=memory,
        )


def _blank(leaf: ArrayLike, skip: jax.Array) -> jax.Array:
    """Zeros for an integer leaf of a skipped step; the floating ones are zeros already."""
    if jnp.issubdtype(jnp.result_type(leaf), jnp.inexact):
        return leaf
    return jnp.where(skip, jnp.zeros_like(leaf), leaf)


def _as(value: ArrayLike, like: jax.Array) -> jax.Array:
    return lax.convert_element_type(jnp.asarray(value), like.dtype)


def _splits(
    axis_name: Axes, names: tuple[str, ...], leaves: Sequence[jax.Array]
) -> list[tuple[str, ...]]:
    """The mesh axes that each leaf is split over: as said, less those it does not vary on."""
    if axis_name is None:
        return []
    patterns = axis_name if isinstance(axis_name, Mapping) else {"*": axis_name}
    split = []
    for name, leaf in zip(names, leaves, strict=True):
        axes = next((v for k, v in patterns.items() if fnmatchcase(name, k)), None) or ()
        axes = (axes,) if isinstance(axes, str) else tuple(axes)
        split.append(tuple(axis for axis in axes if _varies(leaf, axis)))
    return split


def _varies(leaf: jax.Array, axis: str) -> bool:
    """Whether a leaf may differ along a mesh axis; JAX knows it where `shard_map` checks."""
    checked = axis in varying_axes(lax.axis_index(axis))
    return not checked or axis in varying_axes(leaf)


def second_moments(inner: PyTree, policy: Policy) -> tuple[list[jax.Array], jax.Array]:
    """Adam's second moments and their count, wherever they stand in the optimizer's state."""

    def holds(node: PyTree) -> bool:
        return hasattr(node, "nu") and hasattr(node, "count")

    holders = [n for n in jax.tree.leaves(inner, is_leaf=holds) if holds(n)]
    if len(holders) != 1:
        raise UsageError(
            f"{policy.spec()} reads the optimizer's second moment, and here are {len(holders)} of "
            f"them; type steadygrad.jax.guard(optax.adam(...), clip={policy.spec()!r})"
        )
    return floating_leaves(holders[0].nu)[1], holders[0].count
