"""What one frame shows, read from the end of a run file."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from steadygrad.recovery.events import RecoveryEvent, events_of
from steadygrad.recovery.undone import undone
from steadygrad.rules import Finding, diagnose
from steadygrad.runlog import Run, open_run

if TYPE_CHECKING:
    from steadygrad.runlog.info import RunInfo
    from steadygrad.runlog.run import Steps

TAIL = 1000
"""Steps that the curves show."""
TENSOR_TAIL = 120
EVERY_SECONDS = 5.0
REST = 20.0
"""Times as long as a diagnosis took until the next."""


@dataclass(frozen=True)
class TensorRow:
    """One tensor at the end of the run.

    Attributes:
        name: its name.
        norms: its gradient's norm at the last steps, oldest first.
        max_abs: largest finite magnitude at the last of them.
        nonfinite: non-finite elements at the last of them.
        zeros: share of zeros at the last of them.
    """

    name: str
    norms: NDArray[np.float64]
    max_abs: float
    nonfinite: float
    zeros: float

    @property
    def gravity(self) -> tuple[bool, float]:
        """Sort key: broken tensors first, then the largest norm."""
        last = float(self.norms[-1]) if len(self.norms) else 0.0
        broken = not np.isfinite(last)
        return not broken, 0.0 if broken else -last


@dataclass(frozen=True)
class LastSteps:
    """One optimizer's last steps.

    Attributes:
        optimizer: its number.
        steps: rows of `STEP_DTYPE`, oldest first.
        acts: what recovery did with it in the whole run.
    """

    optimizer: int
    steps: Steps
    acts: list[RecoveryEvent] = field(default_factory=list)

    @property
    def clipped(self) -> NDArray[np.bool_]:
        """Which of the steps were clipped."""
        return np.asarray(self.steps["coef"] < 1.0)

    @property
    def undone(self) -> NDArray[np.bool_]:
        """Which of the steps a rollback took back."""
        return undone(np.asarray(self.steps["step"]), self.acts)


@dataclass(frozen=True)
class FrameContent:
    """Everything one frame shows.

    Attributes:
        name: the file's name.
        rows: steps recorded so far.
        info: facts about the run.
        curves: one an optimizer.
        tensors: gravest first.
        findings: what the rules say of the run so far, gravest first.
    """

    name: str
    rows: int
    info: RunInfo
    curves: list[LastSteps]
    tensors: list[TensorRow]
    findings: list[Finding] = field(default_factory=list)

    @property
    def last_time(self) -> float:
        """When the last step was taken; NaN before the first."""
        return float(self.curves[0].steps["time"].max()) if self.curves else float("nan")


def take(path: str | os.PathLike[str], findings: list[Finding] | None = None) -> FrameContent:
    """Read the end of a run.

    Args:
        path: the run file.
        findings: what is known to be wrong with the run.

    Returns:
        What a frame shows.

    Raises:
        RunFileError: there is no readable run.
    """
    run = open_run(path)
    tail = run.step_rows(slice(max(0, len(run) - TAIL), len(run)))
    acts = events_of(run.events)
    curves = [
        LastSteps(
            int(number),
            tail[tail["optimizer"] == number].view(np.recarray),
            [act for act in acts if act.optimizer == number],
        )
        for number in np.unique(tail["optimizer"])
    ]
    return FrameContent(
        os.path.basename(path), len(run), run.info, curves, _tensors(run), findings or []
    )


def _tensors(run: Run) -> list[TensorRow]:
    rows = slice(max(0, len(run) - TENSOR_TAIL), len(run))
    norms = run.tensor_rows(rows)
    nonfinite = run.tensor_rows(rows, figure="nonfinite")
    max_abs = run.tensor_rows(rows, figure="max_abs")
    zeros = run.tensor_rows(rows, figure="zeros")
    table = []
    for place, tensor in enumerate(run.tensors):
        measured = np.flatnonzero(~np.isnan(nonfinite[:, place]))
        if len(measured):
            at = measured[-1], place
            last = float(max_abs[at]), float(nonfinite[at]), float(zeros[at])
            table.append(TensorRow(tensor.name, norms[measured, place], *last))
    return sorted(table, key=lambda row: row.gravity)


class Diagnosis:
    """The rules applied to a run now and then, so that they cost a few per cent of a core.

    Args:
        path: the run file.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = path
        self._next = 0.0
        self._findings: list[Finding] = []

    def findings(self) -> list[Finding]:
        """What the rules said when they were last applied."""
        began = time.monotonic()
        if began >= self._next:
            self._findings = diagnose(self._path)
            spent = time.monotonic() - began
            self._next = time.monotonic() + max(EVERY_SECONDS, REST * spent)
        return self._findings
