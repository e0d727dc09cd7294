"""The contract of every logger, and the thread that keeps it away from the training.

A sink says what to do with a batch of steps, and nothing about time: live, it is called
in a thread of its own behind a bounded queue; offline, `replay` calls the same methods. A
logger that raises is not called again, one that hangs loses steps once its queue is full,
and neither is waited for longer than a moment at exit: each costs one warning.
"""

from __future__ import annotations

import atexit
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, cast

import numpy as np
from numpy.typing import NDArray

from steadygrad.errors import UsageError
from steadygrad.runlog import STEP_DTYPE, Event, TensorInfo
from steadygrad.runlog.items import EventItem, Head, SampleItem, StepItem, TensorsItem, stacked
from steadygrad.runlog.notice import warn
from steadygrad.runlog.pump import Pump, bytes_of_step

if TYPE_CHECKING:
    from collections.abc import Sequence

    from steadygrad.runlog.items import Item
    from steadygrad.runlog.run import Steps

Floats = NDArray[np.float64]
QUEUE_BYTES = 16 << 20
LIVE_SECONDS = 0.5
HANG_SECONDS = 5.0
"""A sink that computes nothing for so long while the process wants to exit is given up."""


@dataclass(frozen=True)
class Batch:
    """Successive steps over one set of tensors.

    Attributes:
        steps: rows of `STEP_DTYPE`.
        names: the tensors' names.
        norms: ``[steps, tensors]``, NaN where not measured; so are the next three.
        max_abs: largest finite magnitudes.
        nonfinite: counts of NaN and inf elements.
        zeros: shares of zero elements.
    """

    steps: Steps
    names: tuple[str, ...]
    norms: Floats
    max_abs: Floats
    nonfinite: Floats
    zeros: Floats

    @property
    def measured(self) -> NDArray[np.bool_]:
        """Which tensors were measured at which step, ``[steps, tensors]``."""
        return ~(np.isnan(self.norms) & np.isnan(self.max_abs) & np.isnan(self.nonfinite))


@dataclass(frozen=True)
class Sample:
    """A figure per tensor beyond the gradients', e.g. ``weight_norm``.

    Attributes:
        name: what was measured.
        step: the step it belongs to.
        values: ``(tensor name, value)`` pairs.
    """

    name: str
    step: int
    values: tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class RunFigures:
    """What is known of a run as a whole once it is over.

    Attributes:
        values: name to number.
        step: its last step.
        time: when that was, in seconds since the Unix epoch.
    """

    values: dict[str, float]
    step: int
    time: float


@dataclass(frozen=True)
class AlertText:
    """An alert in words.

    Attributes:
        severity: ``error`` or ``warning``.
        title: one sentence.
        text: its evidence and its fix.
    """

    severity: str
    title: str
    text: str


class Sink(ABC):
    """Somewhere steps go besides the run file.

    A subclass writes `open`, `write` and `close`, and where it can show them `sample` and
    `event`. Everything it is given arrives in the order of the run, from one thread.

    Args:
        target: where to: a folder, a file, a project, an address.
        tensors: send per-tensor figures of every so many steps, and of each step with a
            non-finite gradient; 0 for never.
    """

    kind = ""
    """What the spec calls it."""
    suffix = ""
    """What a file or folder it writes is called by default; empty where it writes none."""
    default_tensors = 10
    speaks = False
    """It writes events into the run, which the other sinks hear."""

    def __init__(self, target: str = "", *, tensors: int | None = None) -> None:
        self.target = target
        self.tensors = self.default_tensors if tensors is None else tensors
        if self.tensors < 0:
            raise UsageError(f"tensors must be 0 (never) or more, got {self.tensors}")
        self._tensors: list[TensorInfo] = []
        self._pump: Pump[object] | None = None
        self._lost = 0
        self._is_live = False
        self._leave: Callable[[], None] | None = None

    @abstractmethod
    def open(self, head: Head) -> None:
        """Begin: connect, create files."""

    @abstractmethod
    def write(self, batch: Batch) -> None:
        """Take steps."""

    @abstractmethod
    def close(self) -> None:
        """End: flush, disconnect."""

    def sample(self, sample: Sample) -> None:  # noqa: B027 - to be ignored is a valid choice
        """Take a figure beyond the gradients'."""

    def event(self, event: Event) -> None:  # noqa: B027
        """Take something that happened once."""

    def whole(self, figures: RunFigures) -> None:  # noqa: B027
        """Take figures of an exported run as a whole, the last thing before `close`."""

    def told_alert(self, event: Event) -> AlertText | None:
        """An alert of a training that goes on, for loggers that pass such on.

        Args:
            event: whatever was written into the run.

        Returns:
            The alert in words; None for other events, and for those of a run that is over.
        """
        if event.kind != "alert" or not self._is_live:
            return None
        data = event.data
        where = "" if event.step is None else f" at step {event.step}"
        title = f"steadygrad {data.get('id')}{where}: {data.get('title')}"
        text = "\n".join([*data.get("evidence", [])[:1], *data.get("fixes", [])[:1]])
        return AlertText(str(data.get("severity")), title, text)

    @property
    def tensor_names(self) -> tuple[str, ...]:
        """Names of the tensors known so far."""
        return tuple(tensor.name for tensor in self._tensors)

    def wants_tensors(self, step: int) -> bool:
        """Whether a step's per-tensor figures are due."""
        return self.tensors > 0 and step % self.tensors == 0

    def __str__(self) -> str:
        return f"{self.kind}:{self.target}" if self.target else self.kind

    # what a RunWriter calls, in the thread that writes the run file

    def begin(self, head: Head) -> None:
        """Start the thread of this sink."""
        self._pump = Pump(
            self.take,
            self.close,
            self._failed,
            interval=LIVE_SECONDS,
            max_bytes=QUEUE_BYTES,
            patience=0.0,
            deaf=False,  # a process that a logger starts here must hear of SIGTERM
        )
        self._pump.put(head, 0)

    def feed(self, items: list[Item]) -> None:
        """Queue what was recorded; drop it where this sink has fallen too far behind."""
        pump = self._pump
        if pump is None or not pump.usable:
            return
        for item in items:
            size = bytes_of_step(len(item.tensor_ids)) if isinstance(item, StepItem) else 1000
            if not pump.put(item, size):
                self._lost += 1

    def finish(self, timeout: float) -> None:
        """Send what is queued, for no longer than ``timeout`` seconds; less if nothing happens."""
        pump = self._pump
        if pump is None:
            return
        failed = pump.stopped
        if self._leave is not None:
            atexit.unregister(self._leave)
        began = time.monotonic()
        if not pump.close(timeout, HANG_SECONDS):
            warn(
                f"{self} did not finish within {time.monotonic() - began:.0f} s: its last steps "
                "may be missing there. The run file has them (steadygrad export)"
            )
        elif self._lost and not failed:
            warn(f"{self} was too slow: {self._lost} records were not sent. The run file has them")

    def _failed(self, error: BaseException) -> None:
        warn(
            f"sending to {self} stopped: {error} ({type(error).__name__}). The training and the "
            "run file go on"
        )

    def take(self, items: Sequence[object]) -> None:
        """Turn what was recorded into calls of `open`, `write`, `sample` and `event`."""
        for (kind, _), group in groupby(items, _group_of):
            members = list(group)
            if kind is StepItem:
                self.write(self._batch(cast("list[StepItem]", members)))
            else:
                for item in members:
                    self._take_other(item)

    def _take_other(self, item: object) -> None:
        if isinstance(item, Head):
            self._tensors = list(item.tensors)
            self._is_live = item.stop is not None
            self.open(item)
            if item.leave is not None:
                # what a library registers in `open` for the exit would run before our own
                self._leave = item.leave
                atexit.register(item.leave)
        elif isinstance(item, Batch):
            self.write(item)
        elif isinstance(item, Event):
            self.event(item)
        elif isinstance(item, Sample):
            self.sample(item)
        elif isinstance(item, RunFigures):
            self.whole(item)
        elif isinstance(item, TensorsItem):
            self._tensors += item.tensors
        elif isinstance(item, EventItem):
            self.event(Event(item.step, item.time, item.kind, dict(item.data)))
        elif isinstance(item, SampleItem):
            names = [self._tensors[number].name for number in item.tensor_ids]
            values = zip(names, item.values.tolist(), strict=True)
            self.sample(Sample(item.name, item.step, tuple(values)))

    def _batch(self, items: list[StepItem]) -> Batch:
        tensors = [self._tensors[number] for number in items[0].tensor_ids]
        sizes = np.array([np.prod(t.shape, dtype=np.float64) for t in tensors])
        zeros = stacked(items, "zeros")
        return Batch(
            _rows(items),
            tuple(tensor.name for tensor in tensors),
            stacked(items, "norms"),
            stacked(items, "max_abs"),
            stacked(items, "nonfinite"),
            np.clip(zeros / np.maximum(sizes, 1.0), 0.0, 1.0),
        )


def _group_of(item: object) -> tuple[type, bytes]:
    ids = item.tensor_ids.tobytes() if isinstance(item, StepItem) else b""
    return type(item), ids


def _rows(items: list[StepItem]) -> Steps:
    names = STEP_DTYPE.names or ()
    table = np.array(
        [tuple(getattr(item.record, name) for name in names) for item in items], STEP_DTYPE
    )
    for row, item in enumerate(items):
        if np.isnan(table["time"][row]):
            table["time"][row] = item.time
    return table.view(np.recarray)


def tensor_figures(batch: Batch, row: int) -> Iterator[tuple[str, dict[str, float]]]:
    """The figures of every tensor measured at one step of a batch, by the tensor's name.

    Args:
        batch: the steps.
        row: which of them.

    Returns:
        Pairs of a name and ``{"norm", "max_abs", "nonfinite", "zeros"}``.
    """
    for place in np.flatnonzero(batch.measured[row]):
        yield (
            batch.names[place],
            {
                "norm": float(batch.norms[row, place]),
                "max_abs": float(batch.max_abs[row, place]),
                "nonfinite": float(batch.nonfinite[row, place]),
                "zeros": float(batch.zeros[row, place]),
            },
        )
