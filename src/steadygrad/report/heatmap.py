"""Tensors x steps: where in the network the gradient grows, fades or breaks.

Read in slices, so that 100,000 steps of 150 tensors never stand in memory at
once; a cell is the largest norm of its stretch of steps, so that a spike of one
step stays visible.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from steadygrad.report.model import HeatMap, TensorData

if TYPE_CHECKING:
    from steadygrad.runlog import Run

MOST_CELLS, MOST_COLUMNS, FEWEST_COLUMNS = 30_000, 360, 60
ROWS_AT_ONCE = 4096


def order(run: Run) -> list[int]:
    """Tensors in forward order, those of unknown position last, otherwise as recorded."""
    place = [(t.position if t.position >= 0 else np.inf, i) for i, t in enumerate(run.tensors)]
    return [i for _, i in sorted(place)]


def heatmap(run: Run) -> HeatMap | None:
    """The picture of per-tensor norms.

    Args:
        run: the run.

    Returns:
        ``tensors`` (name, shape, module, optimizer), ``steps`` (first step of each column),
        ``log10`` ``[tensors][columns]`` of the largest finite norm, None where none; and the
        cells ``[tensor, column]`` that were ``broken`` (NaN or inf) or ``zero`` throughout.
        None where the run holds no per-tensor norms.
    """
    rows, count = len(run), len(run.tensors)
    if not rows or not count:
        return None
    columns = min(rows, MOST_COLUMNS, max(MOST_CELLS // count, FEWEST_COLUMNS))
    edges = np.linspace(0, rows, columns + 1).astype(np.int64)
    places = order(run)
    largest, broken = _cells(run, edges)
    if not (np.isfinite(largest).any() or broken.any()):
        return None
    largest, broken = largest[:, places].T, broken[:, places].T
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = np.round(np.log10(largest), 2)
    return {
        "tensors": [_described(run, i) for i in places],
        "steps": run.steps["step"][edges[:-1]].tolist(),
        "last": run.steps["step"][edges[1:] - 1].tolist(),
        "log10": [[v if np.isfinite(v) else None for v in row] for row in logs.tolist()],
        "broken": np.argwhere(broken).tolist(),
        "zero": np.argwhere((largest == 0) & ~broken).tolist(),
    }


def _described(run: Run, index: int) -> TensorData:
    tensor = run.tensors[index]
    return {
        "name": tensor.name,
        "shape": list(tensor.shape),
        "module": tensor.module,
        "optimizer": tensor.optimizer,
    }


def _cells(run: Run, edges: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Largest finite norm (NaN where none) and whether any was broken, ``[columns, tensors]``."""
    shape = (len(edges) - 1, len(run.tensors))
    largest, broken = np.full(shape, np.nan), np.zeros(shape, bool)
    for start, stop in _slices(edges):
        first, last = edges[start], edges[stop]
        norms = run.tensor_rows(slice(int(first), int(last)))
        bad = run.tensor_rows(slice(int(first), int(last)), figure="nonfinite") > 0
        bad |= np.isinf(norms)
        starts = edges[start:stop] - first
        norms[bad] = np.nan
        largest[start:stop] = np.fmax.reduceat(norms, starts, axis=0)
        broken[start:stop] = np.logical_or.reduceat(bad, starts, axis=0)
    return largest, broken


def _slices(edges: NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """Groups of whole columns, each of about `ROWS_AT_ONCE` rows."""
    columns = len(edges) - 1
    width = max(1, int(edges[-1]) // columns)
    group = max(1, ROWS_AT_ONCE // width)
    for start in range(0, columns, group):
        yield start, min(start + group, columns)
