"""Send a recorded run to a sink, as if it were happening: this is what `export` does."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from steadygrad.rules import stability
from steadygrad.runlog import Run, as_run
from steadygrad.runlog.items import Head
from steadygrad.sinks.base import Batch, RunFigures, Sample, Sink
from steadygrad.sinks.opening import open_sink
from steadygrad.vocabulary import FIGURES

if TYPE_CHECKING:
    from collections.abc import Mapping

BLOCK_VALUES = 2_000_000
"""Figures read at once: bounds the memory of a long export."""


def export(
    run: Run | str | os.PathLike[str],
    to: str,
    out: str | os.PathLike[str] | None = None,
    *,
    tensors: int | None = None,
) -> str:
    """Write a run in another format.

    Args:
        run: a run or its file.
        to: a kind of sink, e.g. ``csv``.
        out: where to; by default beside the run file under its name, or the logger's default.
        tensors: per-tensor figures at every so many steps; None as the sink does by itself.

    Returns:
        Where it went.

    Raises:
        RunFileError: there is no readable run.
        UsageError: no such kind, or the file exists.
        MissingExtraError: a library is not installed.
    """
    opened = as_run(run)
    sink = open_sink(to if tensors is None else f"{to},tensors={tensors}")
    if out is not None:
        sink.target = os.fspath(out)
    elif sink.suffix:
        sink.target = str((opened.path or Path("run.db")).with_suffix(sink.suffix))
    replay(opened, sink)
    return sink.target or sink.kind


def replay(run: Run | str | os.PathLike[str], sink: Sink) -> None:
    """Send all of a run to a sink, in this thread; what the sink raises is raised.

    Args:
        run: a run or its file.
        sink: from `open_sink`, not used yet.

    Raises:
        RunFileError: there is no readable run.

    Example:
        >>> import tempfile
        >>> path = tempfile.mkdtemp() + "/steps.csv"
        >>> replay(Run.from_arrays(steps={"norm": [5.0]}), open_sink(f"csv:{path}"))
        >>> Path(path).read_text().splitlines()[1].split(",")[3]
        '5.0'
    """
    opened = as_run(run)
    try:
        _send(opened, sink)
    except BaseException:
        with contextlib.suppress(Exception):  # the first error is the one to be told
            sink.close()
        raise
    sink.close()


def _send(opened: Run, sink: Sink) -> None:
    sink.take([Head(opened.path, opened.info, tuple(opened.tensors), _keep_nothing)])
    for first in range(0, len(opened), block := _block(opened)):
        sink.take(list(_batches(opened, slice(first, min(first + block, len(opened))))))
    sink.take([*_samples(opened), *opened.events, *_of_the_whole(opened)])


def _of_the_whole(run: Run) -> Iterator[RunFigures]:
    score = stability(run).score
    if not np.isnan(score):  # a run that is too short has none
        last = run.step_rows(slice(len(run) - 1, len(run)))[0]
        yield RunFigures({"unstable": score}, int(last["step"]), float(last["time"]))


def _keep_nothing(kind: str, data: Mapping[str, object], step: int | None) -> None:
    """A finished run takes no more events."""


def _block(run: Run) -> int:
    return max(1, BLOCK_VALUES // (4 * max(1, len(run.tensors))))


def _batches(run: Run, rows: slice) -> Iterator[Batch]:
    """A block of steps, split where the set of tensors that were measured changes."""
    steps = run.step_rows(rows)
    figures = [run.tensor_rows(rows, figure=figure) for figure in FIGURES]
    names = np.array([tensor.name for tensor in run.tensors], object)
    measured = Batch(steps, (), *figures).measured
    changes = np.flatnonzero((measured[1:] != measured[:-1]).any(axis=1)) + 1
    edges = [0, *changes.tolist(), len(steps)]
    for low, high in pairwise(edges):
        here = measured[low]
        parts = [values[low:high][:, here] for values in figures]
        yield Batch(steps[low:high].view(np.recarray), tuple(names[here]), *parts)


def _samples(run: Run) -> Iterator[Sample]:
    names = [tensor.name for tensor in run.tensors]
    for name in run.sample_names:
        steps, values = run.samples(name)
        for step, row in zip(steps.tolist(), values, strict=True):
            pairs = ((n, float(v)) for n, v in zip(names, row, strict=True) if not np.isnan(v))
            yield Sample(name, step, tuple(pairs))
