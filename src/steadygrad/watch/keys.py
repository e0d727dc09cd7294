"""Single keys from a terminal, by the standard library; where there is none, just waiting."""

from __future__ import annotations

import contextlib
import os
import select
import sys
import time
from collections.abc import Iterator


class Keys:
    """Waits for a key.

    Args:
        descriptor: of a terminal in cbreak mode; None where no keys can be read.
    """

    def __init__(self, descriptor: int | None) -> None:
        self._descriptor = descriptor

    @property
    def usable(self) -> bool:
        """Whether keys can be read."""
        return self._descriptor is not None

    def wait(self, seconds: float) -> str:
        """The next key within some seconds; empty where none came."""
        if self._descriptor is None:
            time.sleep(seconds)
            return ""
        ready, _, _ = select.select([self._descriptor], [], [], seconds)
        if not ready:
            return ""
        pressed = os.read(self._descriptor, 1).decode(errors="replace")
        return pressed or "q"  # nothing to read: the terminal is gone


@contextlib.contextmanager
def reading_keys() -> Iterator[Keys]:
    """Read keys as they are pressed, and leave the terminal as it was."""
    if not sys.stdin.isatty() or sys.platform == "win32":
        yield Keys(None)
        return
    import termios
    import tty

    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    try:
        tty.setcbreak(descriptor)
        yield Keys(descriptor)
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)
