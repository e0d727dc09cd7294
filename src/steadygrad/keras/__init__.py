"""Keras 3: `attach` for any optimizer on any backend, and a callback for `fit`."""

from __future__ import annotations

from steadygrad.errors import MissingExtraError

try:
    import keras as _keras  # noqa: F401
except ImportError as error:
    raise MissingExtraError(str(error.name), "keras", "steadygrad.keras") from error

from steadygrad.keras.attaching import Steady, attach
from steadygrad.keras.classes import register_all
from steadygrad.keras.monitor import GradientMonitor

register_all()

__all__ = ["GradientMonitor", "Steady", "attach"]
