"""JAX: the policies as optax transformations, and optax's clipping functions, exact."""

from __future__ import annotations

from steadygrad.errors import needed_for

with needed_for("steadygrad.jax", "jax"):
    import jax as _jax  # noqa: F401
    import optax as _optax  # noqa: F401

from steadygrad.jax.dropins import (
    adaptive_grad_clip,
    clip_by_block_rms,
    clip_by_global_norm,
    global_norm,
    measure,
)
from steadygrad.jax.recording import Recorder, clip_states, record
from steadygrad.jax.recovery import Recovery
from steadygrad.jax.transform import ClipState, GuardState, clip, guard

__all__ = [
    "ClipState",
    "GuardState",
    "Recorder",
    "Recovery",
    "adaptive_grad_clip",
    "clip",
    "clip_by_block_rms",
    "clip_by_global_norm",
    "clip_states",
    "global_norm",
    "guard",
    "measure",
    "record",
]
