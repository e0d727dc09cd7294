"""optax's clipping functions under optax's names, exact where optax's are not.

Signatures are optax's; a non-finite norm leaves updates as they are (see `guard` for
skipping). There is no epsilon, so that a norm at the threshold is left alone.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import optax
from jax import lax

from steadygrad.errors import UsageError
from steadygrad.jax._x64 import in_float64, narrow, wide, widen
from steadygrad.jax.engine import JaxEngine, floating_leaves, leaf_names
from steadygrad.jax.norms import leaf_norms
from steadygrad.policies.base import coefficient, require_norm_type
from steadygrad.policies.methods.agc import unit_axes, unit_norms
from steadygrad.policies.stepping import measure as measure_leaves
from steadygrad.runlog.notice import warn_of_nothing
from steadygrad.stats import GradientStats, combine_norms

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from jax.typing import ArrayLike, DTypeLike

    from steadygrad.typing import PyTree

_warn_of_nothing = functools.partial(
    warn_of_nothing,
    received="a pytree without floating arrays",
    instead="the gradients, as jax.grad returns them",
)


def global_norm(updates: PyTree) -> jax.Array:
    """The 2-norm of a pytree taken as one vector, exact in every dtype.

    Args:
        updates: a pytree of arrays; those of `float0`, which jax.grad gives for
            integers, are left out.

    Returns:
        0-d; float64 where the leaves are, else float32 (inf for a norm over 3.4e38).

    Example:
        >>> import jax.numpy as jnp
        >>> float(global_norm([jnp.full(1_000_000, 3.0, jnp.bfloat16)]))
        3000.0
    """
    _, leaves = _measured(updates, "global_norm")
    dtype = _figure_dtype(leaves)
    norm: jax.Array = in_float64(lambda *x: lax.convert_element_type(_total(x), dtype))(*leaves)
    return norm


def clip_by_global_norm(max_norm: ArrayLike) -> optax.GradientTransformation:
    """Scale updates by ``min(1, max_norm / norm)``.

    Args:
        max_norm: the threshold, 0 or more; a float or a 0-d array.

    Returns:
        A transformation without state.

    Raises:
        UsageError: a threshold under 0, or NaN.

    Example:
        >>> import jax.numpy as jnp
        >>> tx = clip_by_global_norm(1.0)
        >>> tx.update([jnp.array([3e20, 4e20])], tx.init(None))[0]
        [Array([0.6, 0.8], dtype=float32)]

    References:
        Pascanu, Mikolov, Bengio. On the difficulty of training recurrent neural
        networks. ICML 2013.
    """

    _require_threshold(max_norm, "max_norm", "clip_by_global_norm")

    @in_float64
    def scaled(max_norm: ArrayLike, *leaves: jax.Array) -> list[jax.Array]:
        coef = coefficient(jnp, _total(leaves), _limit(max_norm))
        return JaxEngine().scaled(leaves, JaxEngine().computed_once(coef))

    def update(updates: PyTree, state: PyTree, params: PyTree = None) -> tuple[PyTree, PyTree]:
        leaves, rebuild = _clippable(updates, "clip_by_global_norm")
        return rebuild(scaled(max_norm, *leaves)), state

    return optax.GradientTransformation(_no_state, update)


def clip_by_block_rms(threshold: ArrayLike) -> optax.GradientTransformation:
    """Scale each leaf whose root mean square is over the threshold down to it.

    Args:
        threshold: largest root mean square, 0 or more; a float or a 0-d array.

    Returns:
        A transformation without state.

    Raises:
        UsageError: a threshold under 0, or NaN.

    Example:
        >>> import jax.numpy as jnp
        >>> tx = clip_by_block_rms(1.0)
        >>> tx.update([jnp.array([3.0, 3.0])], tx.init(None))[0]
        [Array([1., 1.], dtype=float32)]
    """

    _require_threshold(threshold, "threshold", "clip_by_block_rms")

    @in_float64
    def scaled(threshold: ArrayLike, *leaves: jax.Array) -> list[jax.Array]:
        roots = jnp.asarray([max(1, leaf.size) for leaf in leaves], jnp.float64) ** 0.5
        coefs = coefficient(jnp, leaf_norms(leaves)[0] / roots, _limit(threshold))
        return JaxEngine().scaled(leaves, JaxEngine().computed_once(coefs))

    def update(updates: PyTree, state: PyTree, params: PyTree = None) -> tuple[PyTree, PyTree]:
        leaves, rebuild = _clippable(updates, "clip_by_block_rms")
        return rebuild(scaled(threshold, *leaves)), state

    return optax.GradientTransformation(_no_state, update)


def adaptive_grad_clip(
    clipping: ArrayLike, eps: ArrayLike = 1e-3, axis: int | tuple[int, ...] | None = None
) -> optax.GradientTransformation:
    """Scale each unit's update so that its norm is at most ``clipping * max(|weights|, eps)``.

    Args:
        clipping: largest ratio of the update's norm to the weights'.
        eps: least norm that weights count with.
        axis: axes of a unit; by default vectors whole, axis 0 of 2-D and 3-D arrays,
            axes 0-2 of 4-D and 0-3 of 5-D ones.

    Returns:
        A transformation whose `update` needs the parameters.

    Raises:
        UsageError: ``clipping`` or ``eps`` is under 0 or NaN; from `update`, without
            parameters or for an array of over 5 dimensions.

    Example:
        >>> import jax.numpy as jnp
        >>> tx = adaptive_grad_clip(0.1)
        >>> tx.update([jnp.array([6.0, 8.0])], tx.init(None), [jnp.array([3.0, 4.0])])[0]
        [Array([0.3, 0.4], dtype=float32)]

    References:
        Brock, De, Smith, Simonyan. High-Performance Large-Scale Image Recognition Without
        Normalization. ICML 2021.
    """

    _require_threshold(clipping, "clipping", "adaptive_grad_clip")
    _require_threshold(eps, "eps", "adaptive_grad_clip")

    @in_float64
    def one(update: jax.Array, weight: jax.Array) -> jax.Array:
        axes = _unit_axes(update.shape, axis)
        norms, weights = _unit_norms(update, axes), _unit_norms(weight, axes)
        coef = coefficient(jnp, norms, _limit(clipping) * jnp.maximum(weights, _limit(eps)))
        return jnp.where(coef < 1.0, narrow(widen(update) * coef, update.dtype), update)

    def update(updates: PyTree, state: PyTree, params: PyTree = None) -> tuple[PyTree, PyTree]:
        if params is None:
            raise UsageError(
                "adaptive_grad_clip reads the weights; type tx.update(updates, state, params)"
            )
        _clippable(updates, "adaptive_grad_clip")
        return jax.tree.map(lambda u, w: u if _is_float0(u) else one(u, w), updates, params), state

    return optax.GradientTransformation(_no_state, update)


def measure(updates: PyTree, norm_type: float = 2.0) -> GradientStats:
    """Read a pytree of gradients once; eager or under any transformation.

    Args:
        updates: a pytree of arrays; those of `float0`, which jax.grad gives for
            integers, are left out.
        norm_type: p >= 0.5, or inf.

    Returns:
        The stats; figures are float32 (counts int32), since float64 is off in JAX.

    Raises:
        SpecError: a p under 0.5.

    Example:
        >>> import jax.numpy as jnp
        >>> stats = measure({"w": jnp.array([3.0, 4.0, 0.0])})
        >>> stats.names, float(stats.total_norm), int(stats.zeros[0])
        (('w',), 5.0, 1)
    """
    require_norm_type("measure", norm_type)
    names, leaves = _measured(updates, "measure")
    with wide():
        stats = measure_leaves(JaxEngine(), leaves, names, norm_type, full=True)
        single = {
            key: lax.convert_element_type(getattr(stats, key), _figure_dtype(leaves))
            for key in ("norms", "max_abs", "total_norm")
        }
        return dataclasses.replace(stats, **single)


def _measured(updates: PyTree, caller: str) -> tuple[tuple[str, ...], list[jax.Array]]:
    """Names and arrays of the leaves; warns where there are none."""
    named = zip(leaf_names(updates), jax.tree.leaves(updates), strict=True)
    there = [(name, jnp.asarray(leaf)) for name, leaf in named if not _is_float0(leaf)]
    if not there:
        _warn_of_nothing(caller, "measured")
    return tuple(name for name, _ in there), [leaf for _, leaf in there]


def _clippable(
    updates: PyTree, caller: str
) -> tuple[list[jax.Array], Callable[[Sequence[jax.Array]], PyTree]]:
    """The leaves that can be scaled, and how to put new ones back; warns where there are none.

    Raises:
        UsageError: a leaf holds integers, which scaling would cut down to 0.
    """
    _, leaves, rebuild = floating_leaves(updates)
    for name, leaf in zip(leaf_names(updates), jax.tree.leaves(updates), strict=True):
        dtype = jnp.result_type(leaf)
        if not jnp.issubdtype(dtype, jnp.inexact) and not _is_float0(leaf):
            raise UsageError(
                f"{caller} was given {dtype} values at {name!r}, and scaling would cut them down "
                "to 0: gradients are floating. Leave that leaf out (optax.masked), or give it as "
                "leaf.astype('float32')"
            )
    if not leaves:
        _warn_of_nothing(caller, "clipped")
    return leaves, rebuild


def _is_float0(leaf: ArrayLike) -> bool:
    return bool(getattr(leaf, "dtype", None) == jax.dtypes.float0)


def _require_threshold(value: ArrayLike, name: str, caller: str) -> None:
    """Refuse what is known now; a traced threshold is held at 0 or more by `_limit`."""
    if isinstance(value, jax.core.Tracer):
        return
    try:
        sound = float(value) >= 0
    except (TypeError, ValueError):
        sound = False
    if not sound:
        raise UsageError(
            f"{caller}: {name} must be a number, 0 or more, got {value!r}: a negative threshold "
            f"would reverse gradients. Type {name}=1.0"
        )


def _limit(value: ArrayLike) -> jax.Array:
    """A threshold in float64; one under 0 would turn gradients around."""
    return jnp.maximum(lax.convert_element_type(jnp.asarray(value), jnp.float64), 0.0)


def _no_state(params: PyTree) -> optax.EmptyState:
    return optax.EmptyState()


def _total(leaves: Sequence[jax.Array]) -> jax.Array:
    norms, _ = leaf_norms(leaves)
    return combine_norms(jnp, norms, 2.0) if leaves else jnp.zeros((), jnp.float64)


def _figure_dtype(leaves: list[jax.Array]) -> DTypeLike:
    double = any(leaf.dtype in (jnp.float64, jnp.complex128) for leaf in leaves)
    return jnp.float64 if double else jnp.float32


def _unit_axes(shape: tuple[int, ...], axis: int | tuple[int, ...] | None) -> tuple[int, ...]:
    if axis is not None:
        return (axis,) if isinstance(axis, int) else tuple(axis)
    return unit_axes("optax", shape)


def _unit_norms(x: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    return unit_norms(jnp, jnp.abs(widen(x)), axes)
