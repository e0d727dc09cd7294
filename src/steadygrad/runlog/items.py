"""What travels from the training thread to the thread that writes."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from steadygrad.runlog.records import StepRecord, TensorInfo


class StepItem(NamedTuple):
    """A step with its figures, copied; arrays are over ``tensor_ids``."""

    record: StepRecord
    time: float
    tensor_ids: NDArray[np.int64]
    norms: NDArray[np.float64]
    max_abs: NDArray[np.float64]
    nonfinite: NDArray[np.float64]
    zeros: NDArray[np.float64]


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


Item = StepItem | TensorsItem | SampleItem | EventItem | InfoItem
