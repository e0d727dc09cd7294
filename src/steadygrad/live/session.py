"""Run files in a notebook, where the same cell is run again and again.

There ``run="run.db"`` means: this run, the next of its name. The first is ``run.db``, then
``run-2.db``, ``run-3.db``; which one is said aloud. Elsewhere a file that exists stays an error.
"""

from __future__ import annotations

import contextlib
import os
import sys
import weakref
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from steadygrad.elastic import job, restarts
from steadygrad.errors import UsageError
from steadygrad.live.card import LiveCard
from steadygrad.live.shell import shell_of_a_notebook, shell_of_ipython
from steadygrad.paths import next_free
from steadygrad.runlog.continuing import file_of_job
from steadygrad.runlog.writer import RunWriter
from steadygrad.text import printable

if TYPE_CHECKING:  # a training need not pay for what judges it
    from steadygrad.report.headline import Verdict

_open: weakref.WeakKeyDictionary[RunWriter, int] = weakref.WeakKeyDictionary()
"""Writers that cells of this session opened, as long as something holds them, and their steps
before the cell that runs now."""

_cards: weakref.WeakKeyDictionary[RunWriter, LiveCard] = weakref.WeakKeyDictionary()
"""The live card of each."""

Holder = TypeVar("Holder")

_late: weakref.WeakKeyDictionary[Any, Callable[[Any], None]] = weakref.WeakKeyDictionary()
"""What holds steps back until the next one, and how it is made to hand them over."""

_watched: weakref.WeakSet[object] = weakref.WeakSet()
"""IPython's shells that tell us how their cells begin and end."""


def is_interactive() -> bool:
    """Whether somebody types statements one after another: IPython, Jupyter, Python's prompt."""
    return shell_of_ipython() is not None or hasattr(sys, "ps1")


def say_detached(kind: str) -> None:
    """Say that an optimizer's earlier handle was detached, since a cell attaches to it again.

    Args:
        kind: the optimizer's class.
    """
    print(printable(f"steadygrad: this {kind} was attached already; that handle is detached"))


def open_writer(
    run: str | os.PathLike[str] | RunWriter,
    info: Mapping[str, object] | None = None,
    force: bool = False,
) -> RunWriter:
    """The writer for a ``run=`` argument.

    Args:
        run: a path, or a writer, which is handed back as it is.
        info: facts about a new run.
        force: replace an earlier run file.

    Returns:
        The writer. In an interactive session a file that exists is not touched: the next free
        name is taken, and printed. After an elastic restart the job's file is added to. In a
        notebook it has a live card.

    Raises:
        UsageError: neither of both.
        RunFileError: the file exists, and the session is not interactive.
    """
    if not isinstance(run, (str, os.PathLike)):
        if not hasattr(run, "write_step"):
            raise UsageError(f"run must be a path or a RunWriter, got {run!r}; type run='run.db'")
        follow(run)
        return run
    if job():
        return _next_writer_of_job(os.path.abspath(run), info, force)
    if not is_interactive():
        return RunWriter(run, info=info, force=force)
    asked = Path(run).absolute()
    path = asked if force else Path(next_free(str(asked)))
    if path != asked:
        words = f"steadygrad: {asked.name} exists; this run is recorded in {path.name}"
        print(printable(words))
    writer = RunWriter(path, info=info, force=force)
    follow(writer)
    return writer


def _next_writer_of_job(path: str, info: Mapping[str, object] | None, force: bool) -> RunWriter:
    earlier = file_of_job([path])
    if not earlier and restarts():  # of a rank on another machine, or still open there
        path = next_free(path)
    return RunWriter(earlier or path, info=info, force=force, goes_on=bool(earlier))


def follow(writer: RunWriter) -> None:
    """In IPython, have cells tell the writer how they end; in a notebook, show a live card.

    Args:
        writer: of a run that cells of this session write; outside IPython it is left alone.
    """
    shell = shell_of_ipython()
    if shell is None or writer in _open:
        return
    _open[writer] = 0
    if shell not in _watched:
        _watched.add(shell)
        shell.events.register("pre_run_cell", _note_the_start)
        shell.events.register("post_run_cell", _note_the_end)
    notebook = shell_of_a_notebook()
    if notebook is not None:
        _cards[writer] = LiveCard(notebook)
        writer.add_sink(_cards[writer])


def close_card(writer: RunWriter, error: str) -> None:
    """Draw a run's live card a last time, for a caller that says the verdict itself.

    Args:
        writer: of the run.
        error: name of the exception that ended it; empty for none.
    """
    writer.flush(timeout=1.0)
    card = _cards.pop(writer, None)
    if card is not None:
        card.cell_ends(error)


def hand_over_late_steps(holder: Holder, hand_over: Callable[[Holder], None]) -> None:
    """Have a cell's end call ``hand_over(holder)``: what it was given last waits for the next step.

    Args:
        holder: held weakly.
        hand_over: a function of the holder that does not hold it.
    """
    _late[holder] = hand_over


def _note_the_start(info: object) -> None:
    for card in list(_cards.values()):
        card.cell_begins()


def _note_the_end(result: object) -> None:
    error = getattr(result, "error_in_exec", None)
    for holder, hand_over in list(_late.items()):
        with contextlib.suppress(Exception):  # told where the holder is used next
            hand_over(holder)
    for writer in list(_open):
        writer.flush(timeout=1.0)
        _note_exit(writer, error)
        card = _cards.get(writer)
        if card is not None:
            judge = partial(_judged, writer.path)
            card.cell_ends("" if error is None else type(error).__name__, judge)


def _note_exit(writer: RunWriter, error: BaseException | None) -> None:
    """Have the file say how the last cell ended that trained; other cells are none of its."""
    before, _open[writer] = _open[writer], writer.steps
    trains = writer.steps != before or not before  # one without a step yet may have failed to
    if not trains or not writer.recording or writer.stop_reason:
        return
    if error is not None or "exit" in writer.info:
        writer.update_info(exit="ok" if error is None else type(error).__name__)
        writer.flush(timeout=1.0)


def _judged(path: Path) -> Verdict:
    from steadygrad.report.headline import verdict
    from steadygrad.rules import diagnose
    from steadygrad.runlog import open_run
    from steadygrad.runlog.thinning import thinned

    run = open_run(path)
    return verdict(run, diagnose(thinned(run)))
