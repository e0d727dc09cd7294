"""How JAX measures and scales; see `steadygrad.policies.stepping`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from steadygrad.jax._x64 import narrow, wide, widen
from steadygrad.jax.norms import leaf_extremes, leaf_norms


class JaxEngine:
    """The `Engine` of JAX arrays and tracers.

    Args:
        axes: for each leaf, the mesh axes over which it is split (`shard_map`); none by default.
    """

    xp: Any = jnp

    def __init__(self, axes: Sequence[tuple[str, ...]] = ()) -> None:
        self.axes = axes

    def scope(self) -> Any:
        return wide()

    def norms(self, leaves: Sequence[Any], norm_type: float) -> tuple[Any, Any]:
        norms, nonfinite = leaf_norms(leaves, norm_type)
        for axis, mask in self._splits():
            # pmax of a value that all parts share is that value, known to be the same everywhere
            whole, count = lax.pmax(norms, axis), lax.pmax(nonfinite, axis)
            norms = jnp.where(mask, _join_over(axis, norms, whole, norm_type), whole)
            nonfinite = jnp.where(mask, lax.psum(nonfinite, axis), count)
        return norms, nonfinite

    def extremes(self, leaves: Sequence[Any]) -> tuple[Any, Any]:
        max_abs, zeros = leaf_extremes(leaves)
        for axis, mask in self._splits():
            max_abs = lax.pmax(max_abs, axis)
            zeros = jnp.where(mask, lax.psum(zeros, axis), lax.pmax(zeros, axis))
        return max_abs, zeros

    def _splits(self) -> list[tuple[str, Any]]:
        names = sorted({axis for axes in self.axes for axis in axes})
        return [(name, jnp.asarray([name in axes for axes in self.axes])) for name in names]

    def widen(self, x: Any) -> Any:
        return widen(x)

    def narrow(self, x: Any, like: Any) -> Any:
        return narrow(x, like.dtype)

    def scaled(self, leaf: Any, coef: Any) -> Any:
        # a select on a scalar lets XLA leave donated buffers unwritten
        return lax.select(coef < 1.0, narrow(widen(leaf) * coef, leaf.dtype), jnp.asarray(leaf))

    def scaled_alike(self, leaves: Sequence[Any], coef: Any) -> list[Any]:
        return [self.scaled(leaf, coef) for leaf in leaves]

    def held(self, x: Any) -> Any:
        return lax.optimization_barrier(jnp.asarray(x))

    def cleaned(self, leaf: Any) -> Any:
        return jnp.where(jnp.isfinite(leaf), leaf, jnp.zeros_like(leaf))

    def size(self, leaf: Any) -> int:
        return int(leaf.size)


def _join_over(axis: str, norms: Any, largest: Any, norm_type: float) -> Any:
    """Norms of leaves split over a mesh axis, from the norms of their parts."""
    if norm_type == float("inf"):
        return jnp.where(jnp.isfinite(largest), largest, lax.psum(norms, axis))
    usable = jnp.isfinite(largest) & (largest > 0)
    scale = jnp.where(usable, largest, 1.0)
    joined = scale * lax.psum((norms / scale) ** norm_type, axis) ** (1.0 / norm_type)
    return jnp.where(usable, joined, lax.psum(norms, axis))


def leaf_names(tree: Any) -> tuple[str, ...]:
    """Names of a pytree's leaves, ``/`` between the parts of a path.

    Args:
        tree: any pytree.

    Returns:
        One name a leaf, in the order of `jax.tree.leaves`.

    Example:
        >>> leaf_names({"dense": {"kernel": 1.0, "bias": 2.0}})
        ('dense/bias', 'dense/kernel')
    """
    paths = jax.tree_util.tree_flatten_with_path(tree)[0]
    return tuple(jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in paths)
