"""The newest run of a folder: what a command reads that was given no file."""

from __future__ import annotations

import os
import re
from pathlib import Path

from steadygrad.errors import RunFileError
from steadygrad.runlog.schema import is_run_file

_RANK = re.compile(r"-rank\d+$")


def newest_run(folder: str | os.PathLike[str] = ".") -> Path:
    """Find the run file that was written to last.

    Of processes that each wrote one it is the first's: that with the plain name, else rank 0's.

    Args:
        folder: where to look; folders inside it are left alone.

    Returns:
        The path of the file, ``folder`` in front.

    Raises:
        RunFileError: the folder holds no run file.

    Example:
        >>> import tempfile
        >>> newest_run(tempfile.mkdtemp())
        Traceback (most recent call last):
        steadygrad.errors.RunFileError: no run file in /...: ...
    """
    databases = sorted(Path(folder).glob("*.db"), key=_written, reverse=True)
    newest = next((path for path in databases if is_run(path)), None)
    if newest is None:
        raise RunFileError(
            f"no run file in {Path(folder).absolute()}: type steadygrad run train.py to record "
            "one, or give the path of one"
        )
    if not _RANK.search(newest.stem):
        return newest
    firsts = (newest.with_stem(_RANK.sub(first, newest.stem)) for first in ("", "-rank0"))
    return next((path for path in firsts if path.exists()), newest)


def _written(path: Path) -> float:
    """When a database was last written to: while it is open, its journal alone may show it."""
    return max(_modified(path), _modified(path.with_name(f"{path.name}-wal")))


def _modified(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:  # no journal, or gone since the folder was listed
        return 0.0


def is_run(path: Path) -> bool:
    """Whether a path is a run file, by its first bytes.

    Args:
        path: anything; what is no file or cannot be read is none.
    """
    try:
        if not path.is_file():  # to open a pipe waits for its other end
            return False
        with path.open("rb") as file:
            return is_run_file(file.read(100))
    except OSError:
        return False
