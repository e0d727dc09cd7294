"""Run files in a notebook, where the same cell is run again and again.

There ``run="run.db"`` means: this run, the next of its name. The first is ``run.db``, then
``run-2.db``, ``run-3.db``; which one is said aloud. Elsewhere a file that exists stays an error.
"""

from __future__ import annotations

import os
import sys
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from steadygrad.runlog.writer import RunWriter
from steadygrad.text import printable

_open: weakref.WeakSet[RunWriter] = weakref.WeakSet()
"""Writers that cells of this session opened, as long as something holds them."""

_watched: weakref.WeakSet[Any] = weakref.WeakSet()
"""IPython's shells that tell us how their cells end."""


def is_interactive() -> bool:
    """Whether somebody types statements one after another: IPython, Jupyter, Python's prompt."""
    ipython = sys.modules.get("IPython")
    if ipython is not None and ipython.get_ipython() is not None:
        return True
    return hasattr(sys, "ps1")


def is_restart() -> bool:
    """Whether torchrun started this process again after one of the job had failed."""
    return os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") not in ("", "0")


def next_free(path: Path) -> Path:
    """The path itself, or with the lowest number from 2 on that no file has.

    Args:
        path: what was asked for.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> (folder / "run.db").touch()
        >>> next_free(folder / "run.db").name
        'run-2.db'
    """
    number = 1
    free = path
    while free.exists():
        number += 1
        free = path.with_name(f"{path.stem}-{number}{path.suffix}")
    return free


def open_writer(
    run: str | os.PathLike[str] | RunWriter, info: Mapping[str, Any] | None = None
) -> RunWriter:
    """The writer for a ``run=`` argument.

    Args:
        run: a path, or a writer, which is handed back as it is.
        info: facts about a new run.

    Returns:
        The writer. In an interactive session a file that exists is not touched: the next free
        name is taken, and printed; after an elastic restart it is taken, too.

    Raises:
        RunFileError: the file exists, and the session is not interactive.
    """
    if isinstance(run, RunWriter):
        return run
    if is_restart():
        return RunWriter(next_free(Path(run).absolute()), info=info)
    if not is_interactive():
        return RunWriter(run, info=info)
    asked = Path(run).absolute()
    path = next_free(asked)
    if path != asked:
        words = f"steadygrad: {asked.name} exists; this run is recorded in {path.name}"
        print(printable(words))
    writer = RunWriter(path, info=info)
    _open.add(writer)
    _watch_cells()
    return writer


def _watch_cells() -> None:
    """Have IPython tell how each cell ends: an interrupt belongs into the run's record."""
    ipython = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    if shell is not None and shell not in _watched:
        _watched.add(shell)
        shell.events.register("post_run_cell", _note_the_end)


def _note_the_end(result: Any) -> None:
    error = getattr(result, "error_in_exec", None)
    for writer in list(_open):
        if error is not None and writer.recording:
            writer.update_info(exit=type(error).__name__)
        writer.flush(timeout=1.0)
