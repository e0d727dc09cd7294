"""Keras 3: `attach` for any optimizer on any backend, and a callback for `fit`."""

from __future__ import annotations

from steadygrad.errors import needed_for

with needed_for("steadygrad.keras", "keras"):
    import keras as _keras  # noqa: F401

from steadygrad.keras.attaching import Steady, attach
from steadygrad.keras.classes import register_all
from steadygrad.keras.monitor import GradientMonitor

register_all()

__all__ = ["GradientMonitor", "Steady", "attach"]
