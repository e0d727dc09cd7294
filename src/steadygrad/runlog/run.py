"""Run: a recorded training, read from a file or made of arrays.

Per-tensor figures are decoded when they are asked for: a report over 100,000 steps reads
them in slices, and a question about the total norm reads none. What backs a run (a file,
arrays in memory) is a `Source`; everything a user sees is defined once, here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from operator import attrgetter
from pathlib import Path
from typing import Any, NamedTuple, Protocol, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

from steadygrad.errors import UsageError
from steadygrad.notebook.cards import Card
from steadygrad.runlog.encode import Rows
from steadygrad.runlog.info import RunInfo
from steadygrad.runlog.records import STEP_DTYPE, StepRecord, TensorInfo
from steadygrad.typing import internal
from steadygrad.vocabulary import FIGURES, Figure

Floats = NDArray[np.float64]
Steps = np.recarray[tuple[int], np.dtype[np.void]]
"""Rows of `STEP_DTYPE`, whose columns are attributes."""


@dataclass(frozen=True)
class Event:
    """Something that happened once in a run.

    Attributes:
        step: the step it belongs to; None where it belongs to none.
        time: seconds since the Unix epoch.
        kind: what it is, e.g. ``alert``.
        data: JSON values.
    """

    step: int | None
    time: float
    kind: str
    data: dict[str, Any] = field(default_factory=dict)


class Source(Protocol):
    """What a `Run` reads from; rows are numbered from 0 in the order recorded."""

    path: Path | None
    info: RunInfo
    tensors: list[TensorInfo]
    events: list[Event]
    rows: int

    def steps(self, first: int, last: int) -> Rows:
        """Rows ``first`` up to ``last`` of `STEP_DTYPE`."""

    def figures(
        self, figure: Figure, rows: NDArray[np.int64], tensors: NDArray[np.int64]
    ) -> Floats:
        """One of `FIGURES` for ascending rows and some tensors, NaN where not measured."""

    def sample_names(self) -> list[str]:
        """Names that `samples` knows."""

    def samples(
        self, name: str, tensors: NDArray[np.int64] | None = None
    ) -> tuple[NDArray[np.int64], Floats]:
        """Steps, and values ``[steps, tensors]``, NaN where not measured.

        Args:
            name: of the figure.
            tensors: of one optimizer; steps at which none of its was measured may be left out.
        """


class OptimizerPart(NamedTuple):
    """What one optimizer has of a run.

    Attributes:
        rows: its steps, ascending.
        columns: its tensors, ascending; none in a run that does not tell.
    """

    rows: NDArray[np.int64]
    columns: list[int]


KEPT_BYTES = 8 << 20
"""Of one sampled figure, up to which it is read once: each optimizer's rules ask for it again."""


class Run:
    """A recorded training.

    Made by `open_run` or `Run.from_arrays`.

    Example:
        >>> run = Run.from_arrays(steps={"norm": [1.0, 9.0]}, tensors=["w"],
        ...                       tensor_norms=[[1.0], [9.0]])
        >>> run.steps.norm
        array([1., 9.])
        >>> run.tensor_rows(slice(1, 2))
        array([[9.]])
    """

    def __init__(self, source: Source) -> None:
        self._source = source
        self.path: Path | None = source.path
        self.info: RunInfo = source.info
        self.tensors: list[TensorInfo] = source.tensors
        self.events: list[Event] = source.events
        self._samples: dict[str, tuple[NDArray[np.int64], Floats]] = {}

    @cached_property
    @internal
    def parts(self) -> dict[int, OptimizerPart]:
        """What each optimizer has of the run, by its number, ascending."""
        numbers = np.asarray(self.steps["optimizer"])
        rows = np.argsort(numbers, kind="stable")
        each, firsts = np.unique(numbers[rows], return_index=True)
        columns: dict[int, list[int]] = {}
        for column, tensor in enumerate(self.tensors):
            columns.setdefault(tensor.optimizer, []).append(column)
        split = np.split(rows, firsts[1:])
        return {
            int(number): OptimizerPart(own, columns.get(int(number), []))
            for number, own in zip(each, split, strict=False)
        }

    def __len__(self) -> int:
        return self._source.rows

    def __repr__(self) -> str:
        origin = str(self.path) if self.path else "arrays"
        return f"<Run {origin}: {len(self)} steps, {len(self.tensors)} tensors>"

    def _repr_html_(self) -> str:
        return self.card.as_html()

    @property
    def card(self) -> Card:
        """The run as a notebook shows it: its file, its length, its norms over time."""
        steps = self.steps
        norms = steps.norm
        finite = norms[np.isfinite(norms)]
        clipped = np.asarray(steps.coef) < 1
        figures = [("steps", f"{len(self)}"), ("tensors", f"{len(self.tensors)}")]
        if len(finite):
            figures += [("median norm", f"{np.median(finite):.3g}")]
            figures += [("peak", f"{finite.max():.3g}")]
        if len(self):
            figures += [("clipped", f"{clipped.mean():.1%}")]
        title = f"Run {self.path.name if self.path else 'of arrays'}"
        level = "ok" if len(finite) == len(norms) else "error"
        return Card(title, level, tuple(figures), tuple(float(v) for v in norms))

    @cached_property
    def steps(self) -> Steps:
        """All steps, one row each, with the columns of `STEP_DTYPE`."""
        return self.step_rows(slice(None))

    @cached_property
    def tensor_norms(self) -> Floats:
        """Gradient norm, ``[steps, tensors]``: within 0.2 %; NaN where not measured."""
        return self.tensor_rows(slice(None))

    @cached_property
    def tensor_max_abs(self) -> Floats:
        """Largest finite magnitude, ``[steps, tensors]``: within 0.2 %."""
        return self.tensor_rows(slice(None), figure="max_abs")

    @cached_property
    def tensor_nonfinite(self) -> Floats:
        """Number of NaN and inf elements, ``[steps, tensors]``, exact."""
        return self.tensor_rows(slice(None), figure="nonfinite")

    @cached_property
    def tensor_zeros(self) -> Floats:
        """Share of elements that are zero, 0 to 1, ``[steps, tensors]``, within 2e-5."""
        return self.tensor_rows(slice(None), figure="zeros")

    def step_rows(self, rows: slice) -> Steps:
        """Read some steps only.

        Args:
            rows: a slice of row numbers.

        Returns:
            The rows, with the columns of `STEP_DTYPE`.
        """
        first, last, stride = rows.indices(len(self))
        forward = stride > 0
        low, high = (first, last) if forward else (last + 1, first + 1)
        table = self._source.steps(low, max(low, high))
        return table[::stride].view(np.recarray)

    def tensor_rows(
        self,
        rows: int | slice | ArrayLike,
        tensors: slice | Sequence[int] | ArrayLike | None = None,
        *,
        figure: str = "norms",
    ) -> Floats:
        """Read per-tensor figures of some steps without decoding all.

        Args:
            rows: row numbers as a slice, an index array or a mask over all rows; one int
                gives one row.
            tensors: the same over `tensors`; None for all of them.
            figure: ``norms``, ``max_abs``, ``nonfinite`` or ``zeros``.

        Returns:
            Values ``[rows, tensors]`` (``[tensors]`` for one int), NaN where not measured.

        Raises:
            UsageError: no such figure, row or tensor.
        """
        if figure not in FIGURES:
            raise UsageError(f"no figure {figure!r}: choose one of {', '.join(FIGURES)}")
        wanted = _indices(rows, len(self), "row")
        columns = _indices(slice(None) if tensors is None else tensors, len(self.tensors), "tensor")
        unique, back = np.unique(wanted, return_inverse=True)
        values = self._source.figures(figure, unique, columns)
        if len(unique) != len(wanted) or not np.array_equal(unique, wanted):
            values = values[back]
        return values[0] if isinstance(rows, (int, np.integer)) else values

    @property
    def sample_names(self) -> list[str]:
        """Names of the figures recorded beyond the gradients'."""
        return self._source.sample_names()

    def samples(self, name: str) -> tuple[NDArray[np.int64], Floats]:
        """Read figures that were measured at scheduled steps.

        Args:
            name: e.g. ``weight_norm``; an unknown one gives no rows.

        Returns:
            The steps ``[samples]``, and values ``[samples, tensors]``, NaN where not measured.
        """
        sampled = self._samples.get(name)
        if sampled is None:
            sampled = self._source.samples(name)
            if sampled[1].nbytes <= KEPT_BYTES:
                self._samples[name] = sampled
        return sampled

    @internal
    def samples_of(self, name: str, tensors: Sequence[int]) -> tuple[NDArray[np.int64], Floats]:
        """`samples` of some tensors of one optimizer, without reading those of all the others.

        Args:
            name: e.g. ``weight_norm``.
            tensors: their numbers.

        Returns:
            As `samples`; steps at which none of these was measured may be left out.
        """
        return self._source.samples(name, np.asarray(tensors, np.int64))

    @classmethod
    def from_arrays(
        cls,
        *,
        steps: Mapping[str, ArrayLike] | Sequence[StepRecord] | Rows,
        tensors: Sequence[TensorInfo | str] = (),
        tensor_norms: ArrayLike | None = None,
        tensor_max_abs: ArrayLike | None = None,
        tensor_nonfinite: ArrayLike | None = None,
        tensor_zeros: ArrayLike | None = None,
        info: RunInfo | Mapping[str, object] | None = None,
        events: Iterable[Event] = (),
        samples: Mapping[str, tuple[ArrayLike, ArrayLike]] | None = None,
    ) -> Run:
        """Make a run of arrays, without a file.

        Args:
            steps: columns by name, records, or rows of `STEP_DTYPE`; what is missing takes
                the defaults of `StepRecord`, ``step`` and ``time`` the row number.
            tensors: descriptions, or just names.
            tensor_norms: ``[steps, tensors]``; NaN where not given. So are the next three.
            tensor_max_abs: ``[steps, tensors]``.
            tensor_nonfinite: ``[steps, tensors]``, counts.
            tensor_zeros: ``[steps, tensors]``, shares in 0..1.
            info: facts about the run.
            events: what happened once.
            samples: name to (steps, values ``[steps, tensors]``).

        Returns:
            A run that behaves as one that was read from a file.

        Raises:
            UsageError: shapes that do not fit together.
        """
        infos = [TensorInfo(t) if isinstance(t, str) else t for t in tensors]
        table = _step_table(steps)
        shape = (len(table), len(infos))
        columns = (tensor_norms, tensor_max_abs, tensor_nonfinite, tensor_zeros)
        figures = {
            name: _matrix(name, values, shape)
            for name, values in zip(FIGURES, columns, strict=True)
        }
        sampled = {
            name: (np.asarray(at, np.int64), np.asarray(values, np.float64))
            for name, (at, values) in (samples or {}).items()
        }
        return cls(
            _Arrays(table, infos, figures, cast("RunInfo", dict(info or {})), list(events), sampled)
        )


class _Arrays:
    """A `Source` in memory."""

    def __init__(
        self,
        table: Rows,
        tensors: list[TensorInfo],
        figures: Mapping[Figure, Floats],
        info: RunInfo,
        events: list[Event],
        samples: dict[str, tuple[NDArray[np.int64], Floats]],
    ) -> None:
        self.path: Path | None = None
        self.info, self.tensors, self.events = info, tensors, events
        self.rows = len(table)
        self._table, self._figures, self._samples = table, figures, samples

    def steps(self, first: int, last: int) -> Rows:
        return self._table[first:last]

    def figures(
        self, figure: Figure, rows: NDArray[np.int64], tensors: NDArray[np.int64]
    ) -> Floats:
        return self._figures[figure][np.ix_(rows, tensors)]

    def sample_names(self) -> list[str]:
        return sorted(self._samples)

    def samples(
        self, name: str, tensors: NDArray[np.int64] | None = None
    ) -> tuple[NDArray[np.int64], Floats]:
        nothing = np.zeros(0, np.int64), np.zeros((0, len(self.tensors)))
        steps, values = self._samples.get(name, nothing)
        return steps, values if tensors is None else values[:, tensors]


def _step_table(steps: Mapping[str, ArrayLike] | Sequence[StepRecord] | Rows) -> Rows:
    names = STEP_DTYPE.names or ()
    if isinstance(steps, np.ndarray):
        columns: Mapping[str, NDArray[np.generic]] = {
            name: steps[name] for name in steps.dtype.names or ()
        }
    elif isinstance(steps, Mapping):
        columns = {name: np.asarray(values) for name, values in steps.items()}
    else:
        values = attrgetter(*names)
        return np.array([values(record) for record in steps], STEP_DTYPE)
    unknown = set(columns) - set(names)
    lengths = {len(column) for column in columns.values()}
    if unknown or len(lengths) != 1:
        raise UsageError(
            f"steps must be columns of one length among {', '.join(names)}; "
            f"got {sorted(columns)} of lengths {sorted(lengths)}"
        )
    return _filled(columns, lengths.pop())


def _filled(columns: Mapping[str, NDArray[np.generic]], rows: int) -> Rows:
    table = np.zeros(rows, STEP_DTYPE)
    default = StepRecord(0)
    for name in STEP_DTYPE.names or ():
        table[name] = getattr(default, name)
    table["step"] = table["time"] = np.arange(rows)
    for name, column in columns.items():
        table[name] = column
    return table


def _matrix(name: str, values: ArrayLike | None, shape: tuple[int, int]) -> Floats:
    if values is None:
        return np.full(shape, np.nan)
    matrix = np.asarray(values, np.float64)
    if matrix.shape != shape:
        raise UsageError(
            f"tensor {name} must have shape {shape} (steps, tensors), got {matrix.shape}"
        )
    return matrix


def _indices(wanted: int | slice | ArrayLike, length: int, what: str) -> NDArray[np.int64]:
    if isinstance(wanted, slice):
        return np.arange(*wanted.indices(length))
    array = np.atleast_1d(np.asarray(wanted))
    if array.dtype == bool:
        if array.shape != (length,):
            raise UsageError(f"a {what} mask must have length {length}, got {array.shape}")
        return np.flatnonzero(array)
    indices = array.astype(np.int64) if len(array) else np.zeros(0, np.int64)
    outside = (indices < -length) | (indices >= length)
    if outside.any():
        raise UsageError(f"no {what} {indices[outside][0]}: there are {length}")
    return np.where(indices < 0, indices + length, indices)
