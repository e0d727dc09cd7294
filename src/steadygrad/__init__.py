"""steadygrad: keep training steady.

Importing the package imports no framework and no heavy dependency: every public
name is loaded on first use, because `steadygrad run` must be able to start
before a script has set its thread counts.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from steadygrad._version import __version__

if TYPE_CHECKING:
    from steadygrad.calibration import Calibration, calibrate
    from steadygrad.rules import Finding, Stability, diagnose, stability
    from steadygrad.runlog import Run, open_run
    from steadygrad.stats import GradientStats

_HOME = {
    "open_run": "steadygrad.runlog",
    "Run": "steadygrad.runlog",
    "diagnose": "steadygrad.rules",
    "Finding": "steadygrad.rules",
    "stability": "steadygrad.rules",
    "Stability": "steadygrad.rules",
    "calibrate": "steadygrad.calibration",
    "Calibration": "steadygrad.calibration",
    "GradientStats": "steadygrad.stats",
    "load_ipython_extension": "steadygrad.launch.cell",
}

__all__ = [
    "Calibration",
    "Finding",
    "GradientStats",
    "Run",
    "Stability",
    "__version__",
    "calibrate",
    "diagnose",
    "open_run",
    "stability",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'steadygrad' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return __all__
