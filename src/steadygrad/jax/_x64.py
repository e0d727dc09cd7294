"""float64 inside a float32 program.

JAX keeps float64 off unless asked, and turning it on for a user's process would
change the user's numbers. It can be on for the few lines that need it, also
while tracing; what leaves those lines is cast down again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import jax
import jax.numpy as jnp
from jax import lax

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from jax.typing import ArrayLike, DTypeLike

    from steadygrad.typing import PyTree

Result = TypeVar("Result")


def wide() -> AbstractContextManager[None]:
    """A context in which float64 exists, for eager code and under any tracer."""
    context: AbstractContextManager[None] = jax.enable_x64(True)
    return context


def in_float64(function: Callable[..., Result]) -> Callable[..., Result]:
    """A function of arrays that runs where float64 exists, and so do its derivatives.

    What differentiates a jitted function does that outside of it, where there is none.
    """

    def inside(*operands: PyTree) -> Result:
        with wide():
            return function(*operands)

    def derivative(
        operands: tuple[PyTree, ...], tangents: tuple[PyTree, ...]
    ) -> tuple[Result, Result]:
        with wide():
            tangents = jax.tree.map(_as_wide_as, tangents, operands)
            both: tuple[Result, Result] = jax.jvp(function, operands, tangents)
            return both

    made: jax.custom_jvp[Result] = jax.custom_jvp(inside)
    made.defjvp(derivative)
    differentiable: Callable[..., Result] = made
    return differentiable


def _as_wide_as(tangent: jax.Array, primal: ArrayLike) -> jax.Array:
    """A tangent whose primal is a Python number is float64 here: JAX 0.8.1 hands it in float32."""
    return lax.convert_element_type(tangent, jnp.float64) if type(primal) is float else tangent


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
