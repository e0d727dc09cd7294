"""A long run, thinned to stretches of steps: words about it cost the same however long it is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from steadygrad.runlog.encode import Rows
from steadygrad.runlog.info import RunInfo
from steadygrad.runlog.records import STEP_DTYPE, TensorInfo
from steadygrad.runlog.run import Event, Floats, Run

LONG = 120_000
"""Steps up to which a run is read whole."""
END = 10_000
STRETCHES, STRETCH = 48, 640
LANDMARKS = "landmarks"
"""Fact of a run file: rows that a reader of some steps must not miss."""


def thinned(run: Run, stretches: int = STRETCHES) -> Run:
    """The run itself where it is short; else some of its steps.

    Those are the first and the last `END`, evenly spread stretches of `STRETCH` between, and the
    steps around the first with a NaN or inf and around the largest norm, which the recording has
    noted.

    Args:
        run: any run.
        stretches: how many between; each costs a look at the file.

    Returns:
        A run of fewer steps; what is not a step's (facts, events, samples) is all there.

    Example:
        >>> run = Run.from_arrays(steps={"norm": np.ones(300_000)})
        >>> len(thinned(run))
        50720
    """
    if len(run) <= LONG:
        return run
    return Run(_Some(run, _rows(len(run), run.info.get(LANDMARKS), stretches)))


def _rows(count: int, landmarks: object, stretches: int) -> NDArray[np.int64]:
    starts = np.linspace(END, count - END - STRETCH, stretches).astype(np.int64)
    middle = (starts[:, None] + np.arange(STRETCH)).ravel()
    noted = landmarks.values() if isinstance(landmarks, dict) else ()
    places = [place for place in noted if isinstance(place, int) and 0 <= place < count]
    around = [np.arange(place - STRETCH // 2, place + STRETCH // 2) for place in places]
    chosen = np.concatenate([np.arange(END), middle, np.arange(count - END, count), *around])
    return np.unique(chosen[(chosen >= 0) & (chosen < count)])


class _Some:
    """A `Source` of some rows of another run."""

    def __init__(self, run: Run, rows: NDArray[np.int64]) -> None:
        self.path: Path | None = run.path
        self.info: RunInfo = run.info
        self.tensors: list[TensorInfo] = run.tensors
        self.events: list[Event] = run.events
        self.rows = len(rows)
        self._run, self._rows = run, rows

    def steps(self, first: int, last: int) -> Rows:
        rows = self._rows[first:last]
        breaks = np.flatnonzero(np.diff(rows) != 1) + 1
        parts = [part for part in np.split(rows, breaks) if part.size]
        tables = [self._run.step_rows(slice(int(part[0]), int(part[-1]) + 1)) for part in parts]
        return np.concatenate(tables) if tables else np.zeros(0, STEP_DTYPE)

    def figures(self, figure: str, rows: NDArray[np.int64], tensors: NDArray[np.int64]) -> Floats:
        return self._run.tensor_rows(self._rows[rows], tensors, figure=figure)

    def sample_names(self) -> list[str]:
        return self._run.sample_names

    def samples(
        self, name: str, tensors: NDArray[np.int64] | None = None
    ) -> tuple[NDArray[np.int64], Floats]:
        if tensors is None:
            return self._run.samples(name)
        return self._run.samples_of(name, tensors.tolist())
