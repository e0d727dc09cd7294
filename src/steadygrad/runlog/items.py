"""What travels from the training thread to the thread that writes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from steadygrad.runlog.records import StepRecord, TensorInfo


class StepItem(NamedTuple):
    """A step with its figures, copied; ``figures`` is ``[4, tensors]``, one array to make."""

    record: StepRecord
    time: float
    tensor_ids: NDArray[np.int64]
    figures: NDArray[np.float64]

    @property
    def norms(self) -> NDArray[np.float64]:
        """Norm of each tensor's gradient."""
        row: NDArray[np.float64] = self.figures[0]
        return row

    @property
    def max_abs(self) -> NDArray[np.float64]:
        """Largest finite magnitudes."""
        row: NDArray[np.float64] = self.figures[1]
        return row

    @property
    def nonfinite(self) -> NDArray[np.float64]:
        """Counts of NaN and inf elements."""
        row: NDArray[np.float64] = self.figures[2]
        return row

    @property
    def zeros(self) -> NDArray[np.float64]:
        """Counts of zero elements."""
        row: NDArray[np.float64] = self.figures[3]
        return row


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
    data: dict[str, Any]
    step: int | None
    time: float


class InfoItem(NamedTuple):
    """Facts about the run as a whole."""

    values: dict[str, Any]


@dataclass(frozen=True)
class Head:
    """What a sink learns of a run before its first step.

    Attributes:
        path: the run file; None where there is none.
        info: facts about the run so far.
        tensors: the tensors known so far, in the order of their numbers.
        write_event: as `RunWriter.write_event`.
        leave: ends the recording, sinks included, as the end of the process does.
    """

    path: Path | None
    info: dict[str, Any]
    tensors: tuple[TensorInfo, ...]
    write_event: Callable[[str, dict[str, Any], int | None], None]
    leave: Callable[[], None] | None = None


class Tap(Protocol):
    """What `RunWriter.add_sink` takes: it hears everything, in the thread that writes.

    None of these may raise, or take longer than it takes to queue.
    """

    def begin(self, head: Head) -> None:
        """Called once, before anything is fed."""

    def feed(self, items: list[Any]) -> None:
        """Called with what was just committed."""

    def finish(self, timeout: float) -> None:
        """Called once at the end; may take up to ``timeout`` seconds."""


class TapItem(NamedTuple):
    """A tap that hears everything from here on."""

    tap: Tap


Item = StepItem | TensorsItem | SampleItem | EventItem | InfoItem
