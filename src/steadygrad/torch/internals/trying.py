"""Where copies of an optimizer are tried out: what is called there is none of the script's loop."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Iterator

from steadygrad.kernels.native import Empty

_threads: set[int] = set()

NOBODY_TRIES: Empty = ((sys.modules[__name__], "_threads"),)
"""Empty where no thread tries out copies."""


@contextlib.contextmanager
def trying() -> Iterator[None]:
    """In this thread, copies are tried out.

    Example:
        >>> with trying():
        ...     is_trying()
        True
        >>> is_trying()
        False
    """
    _threads.add(threading.get_ident())
    try:
        yield
    finally:
        _threads.discard(threading.get_ident())


def is_trying() -> bool:
    """Whether this thread tries out copies."""
    return bool(_threads) and threading.get_ident() in _threads
