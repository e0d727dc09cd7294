"""The file descriptors under which SQLite writes a run file.

A script may close descriptors that it does not know, as one does that becomes a daemon. Its next
files get their numbers, and SQLite would write into those. `os.closerange` leaves ours open, as if
nothing were there to close; where they were closed otherwise, that is seen before each write.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Iterable
from pathlib import Path

_FOLDERS = "/proc/self/fd", "/dev/fd"

_IN_USE: weakref.WeakSet[OwnDescriptors] = weakref.WeakSet()


class OwnDescriptors:
    """Descriptors of one file and of those beside it, opened after this was made.

    Args:
        path: the file.
        suffixes: of the files beside it.
    """

    def __init__(self, path: Path, suffixes: Iterable[str]) -> None:
        self._paths = [path, *(path.with_name(path.name + suffix) for suffix in suffixes)]
        self._process = os.getpid()
        self._before = _open_now()
        self._own: dict[int, tuple[int, int]] = {}

    def note(self) -> None:
        """They are open now."""
        wanted = set(map(_file_of, self._paths)) - {None}
        opened = ((number, _file_of(number)) for number in _open_now() - self._before)
        self._own = {number: file for number, file in opened if file and file in wanted}
        if self._own:
            _IN_USE.add(self)
            _spare()

    def numbers(self) -> set[int]:
        """Those of this process; none in a child of it."""
        return set(self._own) if self._process == os.getpid() else set()

    def taken(self) -> bool:
        """Whether one of them is closed, or another file's."""
        return any(_file_of(number) != file for number, file in self._own.items())

    def forget(self) -> None:
        """They are closed."""
        self._own = {}


def _open_now() -> set[int]:
    folder = next(filter(os.path.isdir, _FOLDERS), None)
    listed = [] if folder is None else os.listdir(folder)
    # the descriptor by which the folder was read is among them
    return {int(each) for each in listed if each.isdigit() and _file_of(int(each)) is not None}


def _file_of(place: int | Path) -> tuple[int, int] | None:
    """Device and number of the file at a descriptor or path; None where there is none."""
    try:
        status = os.stat(place)
    except OSError:
        return None
    return status.st_dev, status.st_ino


_closerange = os.closerange


def closerange(fd_low: int, fd_high: int, /) -> None:
    """Closes all file descriptors in [fd_low, fd_high), ignoring errors."""
    start = fd_low
    for number in sorted(each for own in list(_IN_USE) for each in own.numbers()):
        if start <= number < fd_high:
            _closerange(start, number)
            start = number + 1
    _closerange(start, fd_high)


def _spare() -> None:
    if os.closerange is _closerange:
        os.closerange = closerange
