"""TensorFlow: its clipping functions, exact, and `measure`."""

from __future__ import annotations

from steadygrad.errors import needed_for

with needed_for("steadygrad.tensorflow", "tensorflow"):
    import tensorflow as _tensorflow  # noqa: F401

from steadygrad.tensorflow.dropins import (
    clip_by_global_norm,
    clip_by_norm,
    clip_by_value,
    global_norm,
    measure,
)

__all__ = ["clip_by_global_norm", "clip_by_norm", "clip_by_value", "global_norm", "measure"]
