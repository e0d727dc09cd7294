"""Batches that are left out after a rollback: told to a loader that can, written for one that
restarts."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TypeVar

from steadygrad.errors import SteadyGradWarning
from steadygrad.runlog.notice import warn

Batch = TypeVar("Batch")

FILE = "skip_batches.json"
SHARE = 0.01
"""Most of the time that writing the list may take: a list that is long is written less often."""


class LeftOut:
    """Numbers of the batches to leave out.

    Args:
        path: where the list is kept; None for nowhere. What it holds already is left out too.

    Attributes:
        pending: batches that a loader is still to leave out.
        heeded: whether a loader leaves them out by itself.

    Example:
        >>> left_out = LeftOut(None)
        >>> left_out.add(1, 2)
        >>> list(left_out.of("abcd")), left_out.numbers()
        (['a', 'd'], [1, 2])
    """

    def __init__(self, path: Path | None) -> None:
        self.pending = 0
        self.heeded = False
        self.position = 0
        self._path = path
        self._numbers: set[int] = set()
        self._written, self._due = True, 0.0
        if path is not None:
            self._numbers |= _read(path)

    def numbers(self) -> list[int]:
        """The list so far, ascending."""
        return sorted(self._numbers)

    def current(self, step: int) -> int:
        """Number of the batch in use: the step's, where no loader counts."""
        return self.position - 1 if self.heeded else step

    def add(self, first: int, last: int) -> None:
        """Leave out the batches from `first` to `last`, both included."""
        self._numbers.update(range(first, last + 1))
        self._written = False
        self.write_when_due()

    def of(self, batches: Iterable[Batch], start: int = 0) -> Iterator[Batch]:
        """The batches without those to leave out.

        Args:
            batches: a loader; it is numbered on from epoch to epoch.
            start: number of its first batch, after a restart.
        """
        self.heeded = True
        self.position = max(self.position, start)
        for batch in batches:
            number, self.position = self.position, self.position + 1
            if self.pending > 0:
                self.pending -= 1
                self.add(number, number)
            elif number not in self._numbers:
                yield batch

    def write_when_due(self) -> None:
        """Write what is new, unless the list has just been written."""
        began = time.perf_counter()
        if not self._written and began >= self._due:
            self.write()
            ended = time.perf_counter()
            self._due = ended + (ended - began) / SHARE

    def write(self) -> None:
        """Write what is new."""
        if self._written:
            return
        self._written = True
        if self._path is None:
            return
        content = json.dumps({"batches": self.numbers()})
        partial = self._path.with_suffix(f".{os.getpid()}.partial")  # all ranks write the same list
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            partial.write_text(content)
            os.replace(partial, self._path)
        except OSError as error:  # a full disk must not end a training
            warn(f"{self._path} was not written: {error}", SteadyGradWarning)


def _read(path: Path) -> set[int]:
    try:
        if not path.is_file():  # to open a pipe waits for its other end
            return set()
        listed = json.loads(path.read_text())["batches"]
        return {number for number in listed if type(number) is int}
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return set()
