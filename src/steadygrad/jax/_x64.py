"""float64 inside a float32 program.

JAX keeps float64 off unless asked, and turning it on for a user's process would
change the user's numbers. It can be on for the few lines that need it, also
while tracing; what leaves those lines is cast down again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from jax import lax

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from jax.typing import ArrayLike, DTypeLike


def wide() -> AbstractContextManager[None]:
    """A context in which float64 exists, for eager code and under any tracer."""
    context: AbstractContextManager[None] = jax.enable_x64(True)
    return context


def widen(x: ArrayLike) -> jax.Array:
    """`x` in float64 (complex128 where it is complex); call it inside `wide`."""
    dtype = jnp.complex128 if jnp.iscomplexobj(x) else jnp.float64
    return lax.convert_element_type(x, dtype)


def narrow(x: jax.Array, dtype: DTypeLike) -> jax.Array:
    """A float64 or complex128 array rounded once to `dtype`; call it inside `wide`.

    XLA converts float64 to the 16-bit formats by way of float32, which rounds
    twice: the float32 in between is therefore rounded to odd.

    Args:
        x: float64 or complex128, any shape.
        dtype: a floating or complex dtype.

    Returns:
        An array of `dtype`.
    """
    if jnp.dtype(dtype).itemsize > 2 or x.dtype != jnp.float64:
        return lax.convert_element_type(x, dtype)
    single = lax.convert_element_type(x, jnp.float32)
    lost = x - lax.convert_element_type(single, jnp.float64)
    bits = lax.bitcast_convert_type(single, jnp.int32)
    outward = jnp.where((lost > 0) == (x > 0), 1, -1).astype(jnp.int32)
    move = (lost != 0) & (bits % 2 == 0) & jnp.isfinite(single)
    odd = lax.bitcast_convert_type(bits + jnp.where(move, outward, 0), jnp.float32)
    return lax.convert_element_type(odd, dtype)


def number(value: ArrayLike) -> jax.Array:
    """Any scalar as a 0-d float64 array; call it inside `wide`."""
    return jnp.reshape(lax.convert_element_type(jnp.asarray(value), jnp.float64), ())
