"""The C core as XLA custom calls: on a CPU, one read gives every figure of every leaf.

Plain XLA takes a reduction for each figure of each leaf, float32 sums that must be tested, and
for a model of thousands of leaves minutes to compile. A custom call, though, is opaque: XLA can
neither split it over devices, nor differentiate it, nor fuse it with what comes before and
after. So it serves where there is one CPU device; derivatives are those of the plain
form; and only leaves of up to `SMALL` elements are also scaled here, which are many and light,
while the scaling of a large one is best fused into the optimizer's own pass.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

import jax
import jax.numpy as jnp
from jax import lax

from steadygrad import extensions
from steadygrad.jax._varying import varying_axes

if TYPE_CHECKING:
    from types import ModuleType

SMALL = 1 << 14
"""Leaves of up to this many elements are dealt with together."""

DTYPES = ("float32", "float64", "float16", "bfloat16", "complex64", "complex128")

TELL = "steadygrad_tell"

Figures = tuple[jax.Array, jax.Array, jax.Array, jax.Array]


class Queue(Protocol):
    """What the custom call `TELL` was handed, until it is taken; one a process."""

    def take(self) -> list[tuple[int, float, int, bytes]]:
        """All that waits, oldest first: who told, when, how much had been told before, and what."""

    def count(self) -> int:
        """How much was ever told."""

    def lost(self) -> int:
        """How much was lost since the last call, for want of memory."""


def serves(leaves: Sequence[jax.Array]) -> bool:
    """Whether the custom call can measure these leaves in this process.

    Args:
        leaves: arrays or tracers.

    Returns:
        False where there are several devices, another platform, no C extension, or a dtype
        that it does not know.
    """
    return bool(leaves) and _registered() and all(map(_is_known, leaves))


@functools.cache
def queue() -> Queue | None:
    """Where compiled code can tell things by `TELL`; None where custom calls do not serve."""
    if not _registered():
        return None
    made: Queue | None = extensions.load(extensions.XLA)
    return made


def knows(dtype: object) -> bool:
    """Whether `TELL` takes arrays of a dtype."""
    return str(dtype) in (*DTYPES, "uint32")


def _is_known(leaf: jax.Array) -> bool:
    # a leaf that varies over a mesh axis is inside a `shard_map`, which wants results that say so
    return str(leaf.dtype) in DTYPES and not varying_axes(leaf)


@functools.cache
def _registered() -> bool:
    """Make the handler known to XLA, once; False where it cannot be used."""
    if jax.default_backend() != "cpu" or jax.device_count() != 1 or not hasattr(jax, "ffi"):
        return False
    extension: ModuleType | None = extensions.load(extensions.XLA)
    if extension is None:
        return False
    try:
        for name, handler in extension.handlers().items():
            jax.ffi.register_ffi_target(name, handler, platform="cpu")
    except Exception:  # XLA's own error types: an interface of another major version
        return False
    return True


def read(leaves: Sequence[jax.Array], norm_type: float, plain: Callable[..., Figures]) -> Figures:
    """All figures of all leaves; call it inside `wide`.

    Args:
        leaves: floating or complex arrays that `serves` accepts.
        norm_type: p >= 0.5, or inf.
        plain: the same in plain XLA, ``(leaves, norm_type)``; its derivatives are taken.

    Returns:
        ``norms`` and ``max_abs`` float64, ``nonfinite`` and ``zeros`` int32, ``[leaves]`` each.
    """
    figures = jax.custom_jvp(functools.partial(_called, norm_type))

    def derivative(values: tuple[jax.Array, ...], tangents: tuple[jax.Array, ...]) -> jax.Array:
        return jax.jvp(lambda *primals: plain(primals, norm_type), values, tangents)

    figures.defjvp(derivative)
    result: Figures = figures(*leaves)
    return result


def _called(norm_type: float, *leaves: jax.Array) -> Figures:
    count = (len(leaves),)
    kinds = (jnp.float64, jnp.float64, jnp.int64, jnp.int64)
    call = jax.ffi.ffi_call(
        "steadygrad_read",
        [jax.ShapeDtypeStruct(count, kind) for kind in kinds],
        vmap_method="sequential",
    )
    options = jnp.asarray([norm_type, _threads()], jnp.float64)
    norms, max_abs, nonfinite, zeros = call(options, *leaves)
    return norms, max_abs, nonfinite.astype(jnp.int32), zeros.astype(jnp.int32)


def scale(
    leaves: Sequence[jax.Array],
    coefs: jax.Array,
    plain: Callable[[jax.Array, jax.Array], jax.Array],
) -> list[jax.Array]:
    """Leaves times their coefficients; call it inside `wide`.

    Args:
        leaves: floating or complex arrays that `serves` accepts.
        coefs: float64 ``[leaves]``.
        plain: the same for one leaf and its coefficient in plain XLA; its derivatives are taken.

    Returns:
        The products, each rounded once; as they came for 1, and zeros for 0.
    """
    scaled = jax.custom_jvp(_scaled)

    def each(coefs: jax.Array, *leaves: jax.Array) -> list[jax.Array]:
        return [
            plain(leaf, lax.index_in_dim(coefs, i, keepdims=False)) for i, leaf in enumerate(leaves)
        ]

    def derivative(values: tuple[jax.Array, ...], tangents: tuple[jax.Array, ...]) -> jax.Array:
        return jax.jvp(each, values, tangents)

    scaled.defjvp(derivative)
    return list(scaled(coefs, *leaves))


def _scaled(coefs: jax.Array, *leaves: jax.Array) -> list[jax.Array]:
    call = jax.ffi.ffi_call(
        "steadygrad_scale",
        [jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in leaves],
        vmap_method="sequential",
    )
    return list(call(coefs, *leaves))


def _threads() -> int:
    """As many as XLA's own pool has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
