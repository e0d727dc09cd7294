"""Along which mesh axes a value may differ inside `shard_map`, by every name that JAX has had."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import jax
from jax import lax

if TYPE_CHECKING:
    from jax.typing import ArrayLike


def varying_axes(value: ArrayLike | jax.ShapeDtypeStruct) -> frozenset[str]:
    """The mesh axes along which a value may differ from device to device.

    Args:
        value: an array, a tracer or the shape of one.

    Returns:
        Their names; none where `shard_map` does not check (``check_vma=False``).

    Example:
        >>> import jax.numpy as jnp
        >>> varying_axes(jnp.ones(3))
        frozenset()
    """
    typeof = getattr(jax, "typeof", None)
    if typeof is None:
        return frozenset()
    kind = value if isinstance(value, jax.ShapeDtypeStruct) else typeof(value)
    manual = getattr(kind, "mat", None) or getattr(kind, "manual_axis_type", None)
    axes = getattr(kind, "vma", None) if manual is None else manual.varying
    return frozenset(axes or ())


def made_varying(value: jax.Array, axes: frozenset[str]) -> jax.Array:
    """A value that is taken to differ along these mesh axes too.

    Args:
        value: an array or a tracer.
        axes: names of mesh axes.
    """
    missing = tuple(sorted(axes - varying_axes(value)))
    if not missing:
        return value
    if hasattr(lax, "pcast"):
        return lax.pcast(value, missing, to="varying")
    return lax.pvary(value, missing)


def splits(leaves: Sequence[ArrayLike], axes: Sequence[str]) -> list[tuple[str, ...]]:
    """The axes that each leaf is known to be split over; nothing where there are no axes."""
    if not axes:
        return []
    return [tuple(axis for axis in axes if axis in varying_axes(leaf)) for leaf in leaves]
