"""What one step tells, computed where the step is: a row of figures in float64.

JAX has no float64 for the host unless the script asks for it, so a row leaves the device as
pairs of 32-bit words.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from jax import lax

from steadygrad.jax._varying import splits
from steadygrad.jax._x64 import number, wide, widen
from steadygrad.jax.engine import JaxEngine
from steadygrad.jax.native import SMALL
from steadygrad.launch.jax_script.flight import ClippedBy
from steadygrad.launch.jax_script.internals import axis_sizes, is_product
from steadygrad.launch.jax_script.track import HEAD
from steadygrad.policies.base import coefficient
from steadygrad.policies.stepping import CLIP, NONE, SKIP, compare, measure, unit_of
from steadygrad.stats import GradientStats

if TYPE_CHECKING:
    from jax.typing import ArrayLike

OUTCOME = ("threshold", "coef", "cosine", "action")
DROPPED = "dropped"
"""Beside the figures of `HEAD`: whether the script's own guard has dropped the step."""


def row_of(
    leaves: Sequence[jax.Array],
    left: Sequence[jax.Array],
    head: Mapping[str, ArrayLike],
    clipped_by: ClippedBy,
    axes: tuple[str, ...] = (),
    apart: bool = True,
) -> jax.Array:
    """One step's row.

    Args:
        leaves: the gradients.
        left: what the script's clips left of them; empty where that is not to be had.
        head: figures that are known already, by names of `HEAD`; others are computed.
        clipped_by: what the script's clips went by.
        axes: mesh axes that the step is inside of.
        apart: the gradients are read by way of an operation of ours.

    Returns:
        ``[figures, 2]`` uint32.
    """
    with wide():
        engine = JaxEngine(splits(leaves, axes), one_by_one=True)
        names = tuple(str(place) for place in range(len(leaves)))
        stats = measure(engine, _sizes(leaves) if apart else leaves, names, 2.0, full=True)
        facts = {**_outcome(engine, stats, leaves, left, head, clipped_by), **head}
        if DROPPED in head:
            facts["action"] = jnp.where(head[DROPPED], SKIP, facts["action"])
        return packed(facts, stats, axes)


def packed(
    head: Mapping[str, ArrayLike], stats: GradientStats, axes: Sequence[str] = ()
) -> jax.Array:
    """A row as pairs of 32-bit words; call it inside `wide`."""
    device = _device(axes)
    usual = {"steps": 1, "device": device, "loss": math.nan, "told": 0}
    usual.update(lr=math.nan, count=math.nan)
    row = {**usual, "norm": stats.total_norm, **head}
    figures = [widen(x) for x in (stats.norms, stats.max_abs, stats.nonfinite, stats.zeros)]
    numbers = jnp.concatenate([jnp.stack([number(row[name]) for name in HEAD]), *figures])
    return lax.bitcast_convert_type(numbers, jnp.uint32)


eager_row_of = partial(jax.jit, static_argnames=("clipped_by", "axes"))(row_of)
"""`row_of` for a step that is not traced."""


def _outcome(
    engine: JaxEngine,
    stats: GradientStats,
    leaves: Sequence[jax.Array],
    left: Sequence[jax.Array],
    head: Mapping[str, ArrayLike],
    clipped_by: ClippedBy,
) -> dict[str, ArrayLike]:
    """Threshold, coefficient, cosine and code of the action of the script's own clips."""
    if clipped_by == "nothing":
        return dict(zip(OUTCOME, (math.inf, 1.0, 1.0, NONE), strict=True))
    if clipped_by == "norm":
        coef = coefficient(jnp, stats.total_norm, number(head["threshold"]))
        return {"coef": coef, "cosine": 1.0, "action": jnp.where(coef < 1, CLIP, NONE)}
    if not left:
        return {"coef": math.nan, "cosine": math.nan, "action": NONE}
    unit = unit_of(jnp, stats.norms)
    after, _ = engine.norms(_sizes(left), 2.0)
    pairs = list(zip(leaves, left, strict=True))
    dots = [jnp.sum(jnp.real(jnp.conj(widen(a) / unit) * (widen(b) / unit))) for a, b in pairs]
    changed = jnp.any(jnp.stack([jnp.any(a != b) for a, b in pairs]))
    coef, cosine, clipped = compare(jnp, stats, after / unit, jnp.stack(dots), changed)
    return {"coef": coef, "cosine": cosine, "action": jnp.where(clipped, CLIP, NONE)}


def _sizes(leaves: Sequence[jax.Array]) -> list[jax.Array]:
    """Arrays of the same figures, which XLA reads in the place of the script's own.

    XLA fuses the making of a gradient with the optimizer, and rounds less often for it, but
    not where something that it cannot fuse reads the gradient too: a custom call, a branch or
    a callback. An operation of a few instructions between the two, it makes twice instead. Not so
    where a clip by units has made their norms of the gradients: there it changed the bits.
    A product of matrices is fused with nothing: to make a large one's magnitudes is spared.
    """
    return [_size(leaf) for leaf in leaves]


def _size(leaf: jax.Array) -> jax.Array:
    if leaf.size > SMALL and is_product(leaf):
        return leaf
    return leaf.conj() if jnp.iscomplexobj(leaf) else abs(leaf)


def _device(axes: Sequence[str]) -> jax.Array:
    """Number of the device along the axes; 0 where there are none."""
    place = jnp.zeros((), jnp.int32)
    sizes = axis_sizes() if axes else {}
    for axis in axes:
        place = place * sizes[axis] + lax.axis_index(axis)
    return place
