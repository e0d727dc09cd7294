"""What becomes of an optimizer's update: slowed down, or dropped whole."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from jax import lax

from steadygrad.jax._varying import made_varying, varying_axes

if TYPE_CHECKING:
    from steadygrad.typing import PyTree


def slowed(updates: PyTree, rate: jax.Array) -> PyTree:
    """Updates times a rate; exactly themselves at 1."""

    def of(leaf: jax.Array) -> jax.Array:
        inexact = jnp.issubdtype(jnp.result_type(leaf), jnp.inexact)
        return jnp.where(rate < 1.0, leaf * rate.astype(leaf.dtype), leaf) if inexact else leaf

    return jax.tree.map(of, updates)


def dropped_where(
    skip: jax.Array,
    go: Callable[[PyTree, PyTree], tuple[PyTree, PyTree]],
    gradients: PyTree,
    state: PyTree,
) -> tuple[PyTree, PyTree]:
    """An optimizer's update, or zeros and its state as it was where a step is dropped.

    Args:
        skip: 0-d bool.
        go: the update, of gradients and state.
        gradients: a pytree.
        state: the optimizer's.

    Returns:
        Updates and the next state.
    """
    made, after_go = jax.eval_shape(go, gradients, state)
    # both branches must differ along the same mesh axes, wherever either does
    spread = jax.tree.map(varying_axes, (made, after_go))
    spread = (spread[0], jax.tree.map(lambda s, x: s | varying_axes(x), spread[1], state))

    def stay(gradients: PyTree, inner_state: PyTree) -> tuple[PyTree, PyTree]:
        zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), made)
        result: tuple[PyTree, PyTree] = jax.tree.map(made_varying, (zeros, inner_state), spread)
        return result

    def move(gradients: PyTree, inner_state: PyTree) -> tuple[PyTree, PyTree]:
        result: tuple[PyTree, PyTree] = jax.tree.map(
            made_varying, go(gradients, inner_state), spread
        )
        return result

    done: tuple[PyTree, PyTree] = lax.cond(skip, stay, move, gradients, state)
    return done
