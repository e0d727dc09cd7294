"""TensorBoard: scalars, and histograms of the tensors' norms, as one event file.

Records are framed by the `tensorboard` package's own writer. Its event writer is not used:
it imports TensorFlow wherever that is installed, which a torch script has not asked for.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from steadygrad.errors import needed_for
from steadygrad.runlog.items import Head
from steadygrad.sinks.base import Batch
from steadygrad.sinks.scalars import ScalarSink

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from tensorboard.compat.proto.event_pb2 import Event as EventProto
    from tensorboard.compat.proto.histogram_pb2 import HistogramProto

HISTOGRAM_EVERY = 100
"""Steps between two histograms, one value a tensor: log10 of its gradient's norm."""
FLUSH_SECONDS = 2.0


class TensorBoard(ScalarSink):
    """Event files in a folder, for ``tensorboard --logdir``."""

    kind = "tensorboard"
    suffix = ".tensorboard"

    def open(self, head: Head) -> None:
        """Create the event file."""
        self._protos = _protos()
        folder = Path(self.target or "tensorboard")
        folder.mkdir(parents=True, exist_ok=True)
        name = f"events.out.tfevents.{time.time():.6f}.{os.getpid()}.steadygrad"
        self._file = (folder / name).open("xb")
        self._records = self._protos.RecordWriter(self._file)
        self._flushed = time.monotonic()
        self._put(self._protos.Event(wall_time=time.time(), file_version="brain.Event:2"))

    def write(self, batch: Batch) -> None:
        """Send scalars, and a histogram where one is due."""
        super().write(batch)
        for row in np.flatnonzero(batch.steps["step"] % HISTOGRAM_EVERY == 0):
            if self.tensors:
                self._histogram(batch, int(row))
        if time.monotonic() - self._flushed > FLUSH_SECONDS:
            self._file.flush()
            self._flushed = time.monotonic()

    def scalars(self, values: dict[str, float], step: int, time: float) -> None:
        """One event with all numbers of a step."""
        value = self._protos.Summary.Value
        self._event(
            [value(tag=tag, simple_value=number) for tag, number in values.items()], step, time
        )

    def close(self) -> None:
        """Close the event file."""
        self._file.close()

    def _histogram(self, batch: Batch, row: int) -> None:
        norms = batch.norms[row]
        usable = norms[np.isfinite(norms) & (norms > 0)]  # no bar for inf: the scalars show it
        if not len(usable):
            return
        optimizer = int(batch.steps["optimizer"][row])
        tag = "grad_norm/log10_over_tensors" + (f"/optimizer_{optimizer}" if optimizer else "")
        proto = _histogram_proto(self._protos, np.log10(usable))
        step = batch.steps[row]
        self._event([self._protos.Summary.Value(tag=tag, histo=proto)], step["step"], step["time"])

    def _event(self, values: list[object], step: int, when: float) -> None:
        summary = self._protos.Summary(value=values)
        seconds = time.time() if np.isnan(when) else float(when)
        self._put(self._protos.Event(wall_time=seconds, step=int(step), summary=summary))

    def _put(self, event: EventProto) -> None:
        self._records.write(event.SerializeToString())


class _Protos:
    """The few names that are needed of the tensorboard package."""

    def __init__(self) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.histogram_pb2 import HistogramProto
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.record_writer import RecordWriter

        self.Event, self.HistogramProto, self.Summary = Event, HistogramProto, Summary
        self.RecordWriter = RecordWriter


def _protos() -> _Protos:
    with needed_for("the TensorBoard sink", "tensorboard", "tensorboard"):
        return _Protos()


def _histogram_proto(protos: _Protos, values: NDArray[np.float64]) -> HistogramProto:
    counts, edges = np.histogram(values, bins=30)
    return protos.HistogramProto(
        min=values.min(),
        max=values.max(),
        num=len(values),
        sum=values.sum(),
        sum_squares=(values**2).sum(),
        bucket_limit=edges[1:].tolist(),
        bucket=counts.tolist(),
    )


SINK = TensorBoard
