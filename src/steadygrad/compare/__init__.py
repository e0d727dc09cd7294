"""Comparing clipping policies on one script: the same training, over policies and seeds.

Every cell is a `steadygrad run` in a process of its own, so that a crash, a NaN or
a leak in one is a result and not the end of the others, and so that a script needs
nothing but to be runnable.
"""

from __future__ import annotations

from steadygrad.compare.cells import Cell, Grid
from steadygrad.compare.measuring import Curve, TrainingResult, measure
from steadygrad.compare.table import Comparison, Row, judge, judge_each

__all__ = [
    "Cell",
    "Comparison",
    "Curve",
    "Grid",
    "Row",
    "TrainingResult",
    "judge",
    "judge_each",
    "measure",
]
