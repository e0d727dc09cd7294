"""Loggers: TensorBoard, Weights & Biases, MLflow and others, live or from a run file.

The names are loaded on first use, because `steadygrad run` reads specs before the script may
see NumPy.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from steadygrad.sinks.base import Batch, Sample, Sink
    from steadygrad.sinks.opening import kinds, open_sink, record
    from steadygrad.sinks.replaying import export, replay

_HOME = {
    "Batch": "base",
    "Sample": "base",
    "Sink": "base",
    "export": "replaying",
    "kinds": "opening",
    "open_sink": "opening",
    "record": "opening",
    "replay": "replaying",
}

__all__ = ["Batch", "Sample", "Sink", "export", "kinds", "open_sink", "record", "replay"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'steadygrad.sinks' has no attribute {name!r}")
    return getattr(importlib.import_module(f"steadygrad.sinks.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return __all__
