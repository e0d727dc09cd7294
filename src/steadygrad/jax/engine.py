"""How JAX measures and scales; see `steadygrad.policies.stepping`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from jax import lax

from steadygrad.jax import native
from steadygrad.jax._x64 import narrow, wide, widen
from steadygrad.jax.norms import leaf_figures, leaf_norms, ordered

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from steadygrad.typing import Namespace, PyTree

_FEW = 2
"""One small leaf alone is left to XLA, which may fuse its scaling with what follows."""


class JaxEngine:
    """The `Engine` of JAX arrays and tracers.

    Args:
        axes: for each leaf, the mesh axes over which it is split (`shard_map`); none by default.
        one_by_one: see `leaf_figures`.
    """

    xp: Namespace = jnp

    def __init__(self, axes: Sequence[tuple[str, ...]] = (), one_by_one: bool = False) -> None:
        self.axes, self._one_by_one = axes, one_by_one

    def scope(self) -> AbstractContextManager[None]:
        return wide()

    def norms(self, leaves: Sequence[jax.Array], norm_type: float) -> tuple[jax.Array, jax.Array]:
        return self._joined(*leaf_norms(leaves, norm_type), norm_type)

    def figures(
        self, leaves: Sequence[jax.Array], norm_type: float
    ) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
        norms, max_abs, nonfinite, zeros = leaf_figures(leaves, norm_type, self._one_by_one)
        norms, nonfinite = self._joined(norms, nonfinite, norm_type)
        for axis, mask in self._splits():
            max_abs = lax.pmax(max_abs, axis)
            zeros = jnp.where(mask, lax.psum(zeros, axis), lax.pmax(zeros, axis))
        return norms, max_abs, nonfinite, zeros

    def _joined(
        self, norms: jax.Array, nonfinite: jax.Array, norm_type: float
    ) -> tuple[jax.Array, jax.Array]:
        """Norms and counts of whole leaves from those of this device's parts."""
        for axis, mask in self._splits():
            # pmax of a value that all parts share is that value, known to be the same everywhere
            whole, count = lax.pmax(norms, axis), lax.pmax(nonfinite, axis)
            norms = jnp.where(mask, _join_over(axis, norms, whole, norm_type), whole)
            nonfinite = jnp.where(mask, lax.psum(nonfinite, axis), count)
        return norms, nonfinite

    def _splits(self) -> list[tuple[str, jax.Array]]:
        names = sorted({axis for axes in self.axes for axis in axes})
        return [(name, jnp.asarray([name in axes for axes in self.axes])) for name in names]

    def widen(self, x: jax.Array) -> jax.Array:
        return widen(x)

    def narrow(self, x: jax.Array, like: jax.Array) -> jax.Array:
        return narrow(x, like.dtype)

    def scaled(self, leaves: Sequence[jax.Array], coef: jax.Array) -> list[jax.Array]:
        coefs = jnp.broadcast_to(coef, (len(leaves),))
        small = [i for i, leaf in enumerate(leaves) if leaf.size <= native.SMALL]
        if len(small) < _FEW or not native.serves([leaves[i] for i in small]):
            small = []
        done = dict(zip(small, self._together(leaves, coefs, small), strict=True))
        single = jnp.ndim(coef) == 0
        return [
            done[i]
            if i in done
            else _scaled(leaf, coef if single else lax.index_in_dim(coefs, i, keepdims=False))
            for i, leaf in enumerate(leaves)
        ]

    def _together(
        self, leaves: Sequence[jax.Array], coefs: jax.Array, places: list[int]
    ) -> list[jax.Array]:
        if not places:
            return []
        chosen = ordered(coefs, places)
        return native.scale([leaves[i] for i in places], chosen, _scaled)

    def computed_once(self, x: jax.Array) -> jax.Array:
        return lax.optimization_barrier(jnp.asarray(x))

    def cleaned(self, leaf: jax.Array) -> jax.Array:
        return jnp.where(jnp.isfinite(leaf), leaf, jnp.zeros_like(leaf))

    def size(self, leaf: jax.Array) -> int:
        return int(leaf.size)


def _scaled(leaf: jax.Array, coef: jax.Array) -> jax.Array:
    """One leaf times a 0-d coefficient, rounded once; zeros for 0, whatever the leaf holds."""
    product = jnp.where(coef > 0, narrow(widen(leaf) * coef, leaf.dtype), jnp.zeros_like(leaf))
    # a select on a scalar lets XLA leave donated buffers unwritten
    return lax.select(coef < 1.0, product, jnp.asarray(leaf))


def _join_over(axis: str, norms: jax.Array, largest: jax.Array, norm_type: float) -> jax.Array:
    """Norms of leaves split over a mesh axis, from the norms of their parts."""
    if norm_type == float("inf"):
        return jnp.where(jnp.isfinite(largest), largest, lax.psum(norms, axis))
    usable = jnp.isfinite(largest) & (largest > 0)
    scale = jnp.where(usable, largest, 1.0)
    joined = scale * lax.psum((norms / scale) ** norm_type, axis) ** (1.0 / norm_type)
    return jnp.where(usable, joined, lax.psum(norms, axis))


def leaf_names(tree: PyTree) -> tuple[str, ...]:
    """Names of a pytree's leaves, ``/`` between the parts of a path.

    Args:
        tree: any pytree.

    Returns:
        One name a leaf, in the order of `jax.tree.leaves`; an array that is no tree is ``leaf``.

    Example:
        >>> leaf_names({"dense": {"kernel": 1.0, "bias": 2.0}})
        ('dense/bias', 'dense/kernel')
    """
    paths = jax.tree_util.tree_flatten_with_path(tree)[0]
    named = (jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in paths)
    return tuple(name or "leaf" for name in named)


def floating_leaves(
    tree: PyTree,
) -> tuple[tuple[str, ...], list[jax.Array], Callable[[Sequence[jax.Array]], PyTree]]:
    """Names and values of the floating and complex leaves, and how to put new ones back."""
    leaves, structure = jax.tree.flatten(tree)
    places = [i for i, x in enumerate(leaves) if jnp.issubdtype(jnp.result_type(x), jnp.inexact)]
    names = leaf_names(tree)

    def rebuild(new: Sequence[jax.Array]) -> PyTree:
        filled = list(leaves)
        for place, leaf in zip(places, new, strict=True):
            filled[place] = leaf
        return jax.tree.unflatten(structure, filled)

    return tuple(names[i] for i in places), [jnp.asarray(leaves[i]) for i in places], rebuild
