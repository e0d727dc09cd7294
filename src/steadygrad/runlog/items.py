"""What travels from the training thread to the thread that writes."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any, NamedTuple, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from steadygrad.runlog.info import RunInfo
from steadygrad.runlog.records import STEP_DTYPE, StepRecord, TensorInfo
from steadygrad.vocabulary import FIGURES


class StepItem(NamedTuple):
    """A step with its figures, ``[tensors]`` each; nobody writes to them any more.

    Attributes:
        record: the step.
        time: when it was handed over, in seconds since the Unix epoch.
        tensor_ids: numbers of the tensors measured.
        norms: norm of each tensor's gradient.
        max_abs: largest finite magnitudes.
        nonfinite: counts of NaN and inf elements.
        zeros: counts of zero elements.
    """

    record: StepRecord
    time: float
    tensor_ids: NDArray[np.int64]
    norms: NDArray[np.float64]
    max_abs: NDArray[np.float64]
    nonfinite: NDArray[np.float64] | NDArray[np.int64]
    zeros: NDArray[np.float64] | NDArray[np.int64]


class Figures(NamedTuple):
    """Figures of steps over the same tensors, ``[steps, tensors]`` each.

    Attributes:
        tensor_ids: numbers of the tensors, ``[tensors]``.
        places: which rows of their table the steps are, ascending.
        norms: norms of the gradients.
        max_abs: largest finite magnitudes.
        nonfinite: counts of NaN and inf elements.
        zeros: counts of zero elements.
    """

    tensor_ids: NDArray[np.int64]
    places: Sequence[int]
    norms: NDArray[np.float64]
    max_abs: NDArray[np.float64]
    nonfinite: NDArray[np.float64] | NDArray[np.int64]
    zeros: NDArray[np.float64] | NDArray[np.int64]


class StepsTogether(NamedTuple):
    """Steps side by side.

    Attributes:
        table: rows of `STEP_DTYPE`.
        figures: of their tensors; steps over none have none.
    """

    table: NDArray[np.void]
    figures: list[Figures]


class SealedStep(tuple[Any, ...]):
    """A step that the thread which writes makes a `StepItem` of, where it costs least.

    A tuple, since making one calls nothing: step, time, loss, whether the loss was told, learning
    rate, number of the optimizer, numbers of the tensors, and what each kind needs beside these.
    """

    __slots__ = ()

    def opened(self) -> StepItem:
        """The step; the same at every call."""
        raise NotImplementedError

    @classmethod
    def opened_together(cls, steps: Sequence[SealedStep]) -> list[StepItem]:
        """Steps of this kind, of whatever optimizers, in their order."""
        return [step.opened() for step in steps]

    @classmethod
    def rows_together(cls, steps: Sequence[SealedStep]) -> StepsTogether:
        """The same side by side, for which no `StepItem` has to be made."""
        return rows_of(cls.opened_together(steps))


def opened(batch: Iterable[object]) -> list[Any]:
    """What was handed over, its sealed steps opened."""
    items: list[Any] = []
    for kind, members in itertools.groupby(batch, type):
        if issubclass(kind, SealedStep):
            items += kind.opened_together(cast("list[SealedStep]", list(members)))
        else:
            items += members
    return items


def rows_of(items: Sequence[StepItem]) -> StepsTogether:
    """Steps side by side; one without a time has the one at which it was handed over."""
    table = np.array([_record_values(item.record) for item in items], STEP_DTYPE)
    unknown = np.isnan(table["time"])
    if unknown.any():
        table["time"][unknown] = np.array([item.time for item in items])[unknown]
    figures = []
    for places in places_by_tensors([item.tensor_ids for item in items]):
        alike = [items[place] for place in places]
        several = [stacked(alike, name) for name in FIGURES]
        figures.append(Figures(alike[0].tensor_ids, places, *several))
    return StepsTogether(table, figures)


_record_values = attrgetter(*(STEP_DTYPE.names or ()))


def places_by_tensors(tensor_ids: Sequence[NDArray[np.int64]]) -> list[list[int]]:
    """Which steps are over the same tensors; those over none are left out."""
    by_array: dict[int, list[int]] = {}
    by_bytes: dict[bytes, list[int]] = {}
    for place, ids in enumerate(tensor_ids):
        alike = by_array.get(id(ids))
        if alike is None:  # most are of an array that was met before
            alike = by_array[id(ids)] = by_bytes.setdefault(ids.tobytes(), [])
        alike.append(place)
    by_bytes.pop(b"", None)
    return list(by_bytes.values())


def stacked(items: Sequence[StepItem], figure: str) -> NDArray[np.float64]:
    """One figure of steps over the same tensors, ``[steps, tensors]``.

    Args:
        items: the steps, one at least.
        figure: ``norms``, ``max_abs``, ``nonfinite`` or ``zeros``.
    """
    # one copy; to stack them makes views of all first
    together = np.concatenate([getattr(item, figure) for item in items], dtype=np.float64)
    return together.reshape(len(items), -1)


class TensorsItem(NamedTuple):
    """Tensors that were made known, the first of them with number ``first_id``."""

    first_id: int
    tensors: tuple[TensorInfo, ...]


class SampleItem(NamedTuple):
    """Scheduled figures beyond the gradients'."""

    name: str
    step: int
    tensor_ids: NDArray[np.int64]
    values: NDArray[np.float64]


class EventItem(NamedTuple):
    """Something that happened once."""

    kind: str
    data: Mapping[str, object]
    step: int | None
    time: float


class InfoItem(NamedTuple):
    """Facts about the run as a whole."""

    values: dict[str, object]


@dataclass(frozen=True)
class Head:
    """What a sink learns of a run before its first step.

    Attributes:
        path: the run file; None where there is none.
        info: facts about the run so far.
        tensors: the tensors known so far, in the order of their numbers.
        write_event: as `RunWriter.write_event`.
        leave: ends the recording, sinks included, as the end of the process does.
        stop: as `RunWriter.ask_to_stop`; None for a run that is over.
    """

    path: Path | None
    info: RunInfo
    tensors: tuple[TensorInfo, ...]
    write_event: Callable[[str, Mapping[str, object], int | None], None]
    leave: Callable[[], None] | None = None
    stop: Callable[[str, int | None], None] | None = None


class Tap(Protocol):
    """What `RunWriter.add_sink` takes: it hears everything, in the thread that writes.

    None of these may raise, or take longer than it takes to queue.

    Attributes:
        speaks: it may write events, and so ends before those that hear them.
    """

    speaks: bool

    def begin(self, head: Head) -> None:
        """Called once, before anything is fed."""

    def feed(self, items: list[Item]) -> None:
        """Called with what was just committed."""

    def finish(self, timeout: float) -> None:
        """Called once at the end; may take up to ``timeout`` seconds."""


class TapItem(NamedTuple):
    """A tap that hears everything from here on."""

    tap: Tap


Item = StepItem | TensorsItem | SampleItem | EventItem | InfoItem
"""What the file is told."""

Handed = Item | SealedStep | TapItem | Exception
"""What the thread is handed; an exception ends the recording."""
