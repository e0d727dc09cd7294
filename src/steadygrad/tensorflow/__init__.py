"""TensorFlow: its clipping functions, exact, and `measure`."""

from __future__ import annotations

from steadygrad.errors import MissingExtraError

try:
    import tensorflow as _tensorflow  # noqa: F401
except ImportError as error:
    raise MissingExtraError(str(error.name), "tensorflow", "steadygrad.tensorflow") from error

from steadygrad.tensorflow.dropins import (
    clip_by_global_norm,
    clip_by_norm,
    clip_by_value,
    global_norm,
    measure,
)

__all__ = ["clip_by_global_norm", "clip_by_norm", "clip_by_value", "global_norm", "measure"]
