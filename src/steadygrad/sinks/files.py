"""What the sinks that write a table into a file share: columns, and never overwriting."""

from __future__ import annotations

from abc import abstractmethod
from pathlib import Path
from typing import IO, TYPE_CHECKING, Literal, overload

import numpy as np

from steadygrad.errors import UsageError
from steadygrad.runlog import STEP_DTYPE
from steadygrad.runlog.items import Head
from steadygrad.sinks.base import Batch, Sink
from steadygrad.sinks.scalars import TENSOR_NAMES
from steadygrad.vocabulary import FIGURES

if TYPE_CHECKING:
    from numpy.typing import NDArray


@overload
def create(path: Path, *, text: Literal[True]) -> IO[str]: ...
@overload
def create(path: Path, *, text: Literal[False]) -> IO[bytes]: ...
def create(path: Path, *, text: bool) -> IO[str] | IO[bytes]:
    """Open a new file for writing.

    Raises:
        UsageError: it exists.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        return path.open("x", encoding="utf-8", newline="") if text else path.open("xb")
    except FileExistsError:
        raise UsageError(
            f"{path} exists already: choose another path, or remove it first"
        ) from None


def part_path(target: Path, part: int) -> Path:
    """Where the next part of a table goes: ``steps.csv``, then ``steps-2.csv``.

    Example:
        >>> part_path(Path("steps.csv"), 1).name, part_path(Path("steps.csv"), 2).name
        ('steps.csv', 'steps-2.csv')
    """
    return target if part == 1 else target.with_name(f"{target.stem}-{part}{target.suffix}")


def column_names(tensors: tuple[str, ...]) -> list[str]:
    """The columns of a table with these tensors; a name that comes twice is numbered."""
    names = list(STEP_DTYPE.names or ())
    for shown in TENSOR_NAMES.values():
        names += [f"{shown}/{tensor}" for tensor in tensors]
    seen: dict[str, int] = {}
    for place, name in enumerate(names):
        seen[name] = seen.get(name, 0) + 1
        if seen[name] > 1:
            names[place] = f"{name}#{seen[name]}"
    return names


class TableSink(Sink):
    """One row a step; a file cannot get new columns, so new tensors begin the next part."""

    default_tensors = 0

    def open(self, head: Head) -> None:
        """Wait for the first step: only then are the tensors known."""
        self._part = 0

    def write(self, batch: Batch) -> None:
        """A row a step."""
        if not self._part:
            self._next_part()
        elif self.tensors and not set(batch.names) <= set(self._part_tensors):
            self.end_part()
            self._next_part()
        self.rows(self._columns(batch))

    def close(self) -> None:
        """Finish the file; a run of no steps leaves its header."""
        if not self._part:
            self._next_part()
        self.end_part()

    def _next_part(self) -> None:
        self._part += 1
        self._part_tensors = self.tensor_names if self.tensors else ()
        path = part_path(Path(self.target or f"steps{self.suffix}"), self._part)
        self.begin_part(path, column_names(self._part_tensors))

    @abstractmethod
    def begin_part(self, path: Path, names: list[str]) -> None:
        """Create a file with these columns."""

    @abstractmethod
    def rows(self, columns: list[NDArray[np.generic]]) -> None:
        """Append rows, given as columns in that order."""

    @abstractmethod
    def end_part(self) -> None:
        """Finish the file."""

    def _columns(self, batch: Batch) -> list[NDArray[np.generic]]:
        due = np.array([self.wants_tensors(int(step)) for step in batch.steps["step"]], bool)
        values: list[NDArray[np.generic]] = [
            np.asarray(batch.steps[name]) for name in STEP_DTYPE.names or ()
        ]
        for attribute in FIGURES:
            matrix = np.where(due[:, None], getattr(batch, attribute), np.nan)
            values += _by_tensor(matrix, batch.names, self._part_tensors)
        return values


def _by_tensor(
    matrix: NDArray[np.float64], names: tuple[str, ...], wanted: tuple[str, ...]
) -> list[NDArray[np.float64]]:
    if names == wanted:  # the usual case, and the only one in which a name may come twice
        return list(matrix.T)
    place = {name: index for index, name in enumerate(names)}
    nothing = np.full(len(matrix), np.nan)
    return [matrix[:, place[name]] if name in place else nothing for name in wanted]
