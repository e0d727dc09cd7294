"""Arrays that several processes hold parts of, made readable on each of them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TypeVar, cast

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

Tree = TypeVar("Tree")


def whole_here(tree: Tree) -> Tree:
    """The same tree, with every array gathered whole on each device of this process.

    All processes call it together: making an array whole is a collective.

    Args:
        tree: arrays, outside of `jit`.

    Example:
        >>> import jax.numpy as jnp
        >>> whole_here([jnp.ones(2)])
        [Array([1., 1.], dtype=float32)]
    """
    return cast("Tree", jax.tree.map(_whole, tree))


def _whole(array: jax.Array) -> jax.Array:
    sharding = array.sharding
    if array.is_fully_addressable or array.is_fully_replicated:
        return array
    return _gather_over(sharding.mesh)(array) if isinstance(sharding, NamedSharding) else array


@functools.lru_cache(maxsize=16)
def _gather_over(mesh: Mesh) -> Callable[[jax.Array], jax.Array]:
    gather: Callable[[jax.Array], jax.Array] = jax.jit(
        lambda array: array, out_shardings=NamedSharding(mesh, PartitionSpec())
    )
    return gather
