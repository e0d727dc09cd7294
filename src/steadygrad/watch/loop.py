"""`watch`: frames of a run file until the user has seen enough.

Only the file is read, so it works in another terminal, over ssh, and after the run. Each
frame opens the file anew and closes it: a reader that stays inside would keep the writer's
journal growing.
"""

from __future__ import annotations

import contextlib
import os
import time

from rich.console import Console
from rich.live import Live

from steadygrad.errors import RunFileError
from steadygrad.watch.frame import Frame
from steadygrad.watch.keys import Keys, reading_keys
from steadygrad.watch.snapshot import Diagnosis, take

REFRESH_SECONDS = 1.0
PAGING = {"n": 1, " ": 1, "p": -1}


def watch(
    path: str | os.PathLike[str], *, once: bool = False, console: Console | None = None
) -> None:
    """Show a run in the terminal, live.

    Args:
        path: the run file, finished or being written.
        once: print one frame and return; so it does where the output is no terminal.
        console: where to; by default standard output.

    Raises:
        RunFileError: there is no readable run.
    """
    console = console or Console()
    diagnosis = Diagnosis(path)
    if once or not console.is_terminal:
        console.print(Frame(take(path, diagnosis.findings())))
        return
    with reading_keys() as keys, Live(console=console, screen=True, auto_refresh=False) as live:
        _loop(path, diagnosis, keys, live)


def _loop(path: str | os.PathLike[str], diagnosis: Diagnosis, keys: Keys, live: Live) -> None:
    page = 0
    snapshot = take(path, diagnosis.findings())
    while True:
        due = time.monotonic() + REFRESH_SECONDS
        while (left := due - time.monotonic()) > 0:
            live.update(Frame(snapshot, page, keys=keys.usable), refresh=True)
            pressed = keys.wait(left)
            if pressed in ("q", "Q", "\x03", "\x04"):
                return
            page += PAGING.get(pressed, 0)
        with contextlib.suppress(RunFileError):  # replaced, or gone: the last frame stays
            snapshot = take(path, diagnosis.findings())
