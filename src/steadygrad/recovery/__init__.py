"""Recovery: when a training is struck, skip, shrink, roll back or go slower, within a budget.

Nothing here knows of a framework. `Ladder` says what may be done, `Judge` decides at each step from
its loss and norm, `Ring` holds snapshots within a memory budget.
"""

from __future__ import annotations

from steadygrad.recovery.events import RecoveryEvent, events_of
from steadygrad.recovery.judge import Act, Judge, StepVerdict
from steadygrad.recovery.ladder import Ladder, parse_ladder
from steadygrad.recovery.triggers import Reading

__all__ = [
    "Act",
    "Judge",
    "Ladder",
    "Reading",
    "RecoveryEvent",
    "StepVerdict",
    "events_of",
    "parse_ladder",
]
