"""Time x steps: where on its way back through a sequence the gradient grows or fades."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from steadygrad.report.model import TimeMap
from steadygrad.report.optimizers import rows_of_each
from steadygrad.rules.evidence.through_time import Measured, measured
from steadygrad.rules.evidence.view import View

if TYPE_CHECKING:
    from steadygrad.runlog import Run

MOST_COLUMNS = 120


def through_time(run: Run) -> list[TimeMap]:
    """The pictures of the gradient through time, one a recurrent matrix that was measured.

    Args:
        run: the run.

    Returns:
        As `steadygrad.report.model.TimeMap`; empty where nothing was measured.
    """
    return [picture for number in rows_of_each(run) for picture in _of_one(View(run, number))]


def _of_one(view: View) -> Iterator[TimeMap]:
    for column, samples in measured(view).items():
        longest = max(samples, key=lambda sample: sample.length)
        alike = [s for s in samples if np.array_equal(s.positions, longest.positions)]
        yield _picture(view.tensors[column].name, alike[:: -(-len(alike) // MOST_COLUMNS)])


def _picture(name: str, samples: list[Measured]) -> TimeMap:
    norms = np.array([sample.norms for sample in samples]).T
    with np.errstate(divide="ignore"):
        logs = np.round(np.log10(norms), 2)
    return {
        "name": name,
        "length": samples[-1].length,
        "positions": [int(place) for place in samples[-1].positions],
        "steps": [sample.step for sample in samples],
        "log10": [[v if np.isfinite(v) else None for v in row] for row in logs.tolist()],
        "zero": np.argwhere(norms == 0).tolist(),
    }
