"""How a step's figures leave Keras on JAX: through a debug callback."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from steadygrad.launch.track import CALL, MOST_CALLS, Track


class JaxSide:
    """Figures leave a JAX step through a debug callback."""

    def number(self, value: object) -> jax.Array:
        """Any scalar as a 0-d array."""
        return jnp.asarray(getattr(value, "value", value)).astype("float32").reshape(())

    def loss(self, value: object, variables: Sequence[object], beside: jax.Array) -> jax.Array:
        """The loss that was heard; NaN where ``beside``, a tensor of the step, is elsewhere."""
        reaches = value is not None and _reaches(value, beside)
        return self.number(value if reaches else math.nan)

    def head(self, batch: Sequence[jax.Array], calls: Sequence[jax.Array]) -> jax.Array:
        """The first numbers of a row; clip calls on JAX are not seen here."""
        return jnp.concatenate([_stacked(batch), _gap(MOST_CALLS * len(CALL))])

    def body(
        self,
        step: Sequence[jax.Array],
        leaves: Sequence[jax.Array],
        places: Sequence[int],
        tensors: int,
    ) -> jax.Array:
        """The rest of a row."""
        where = jnp.asarray(places)
        full = [_gap(tensors).at[where].set(figure.astype("float32")) for figure in leaves]
        return jnp.concatenate([_stacked(step), *full])

    def when(self, kind: jax.Array, body: Callable[[], jax.Array], width: int) -> jax.Array:
        """``body()`` where a step is taken."""
        return jax.lax.cond(kind != 0, body, functools.partial(_gap, width))

    def joined(self, head: jax.Array, body: jax.Array) -> jax.Array:
        """A whole row."""
        return jnp.concatenate([head, body])

    def ring(self, width: int) -> None:
        """Rows are handed over at once."""

    def emit(self, track: Track, row: jax.Array) -> None:
        """Hand a row over."""
        jax.debug.callback(track.push, row, ordered=False)

    def settle(self) -> None:
        """Wait for the callbacks that are under way."""
        jax.effects_barrier()


def _gap(width: int) -> jax.Array:
    return jnp.full((width,), math.nan, "float32")


def _stacked(figures: Sequence[jax.Array]) -> jax.Array:
    return jnp.stack([jnp.asarray(figure).astype("float32") for figure in figures])


def _reaches(value: object, beside: object) -> bool:
    of, here = (getattr(one, "_trace", None) for one in (value, beside))
    if of is None or (here is not None and not hasattr(here, "parent_trace")):
        return True  # older versions do not tell which trace is inside of which
    while here is not None and here is not of:
        here = getattr(here, "parent_trace", None)
    return here is of
