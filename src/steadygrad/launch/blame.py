"""Whose fault an error is: steadygrad's, the script's, or nobody's (a full disk, say)."""

from __future__ import annotations

import os
import signal
from types import TracebackType

from steadygrad.errors import SteadyGradError
from steadygrad.invisible import INVISIBLE

_PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep
_DEMOS = os.path.join(_PACKAGE, "demos") + os.sep
_LIBRARIES = (os.path.dirname(os.__file__) + os.sep, "<")
_OF_NO_STATEMENT = (SteadyGradError, OSError, SyntaxError, RecursionError, MemoryError)
"""Meant by us, of the system, of the script's text, or raised in whatever frame is the last one."""
NOT_OF_THE_SCRIPT = (
    "steadygrad: this error was raised by steadygrad's own code, not by the script. Please report "
    "it with the traceback; the script runs without steadygrad run."
)


def is_ours(entry: TracebackType) -> bool:
    """Whether a traceback's frame runs steadygrad's code; demos are scripts."""
    path = entry.tb_frame.f_code.co_filename
    return path == INVISIBLE or (path.startswith(_PACKAGE) and not path.startswith(_DEMOS))


def raised_by_us(error: BaseException) -> bool:
    """Whether a statement of steadygrad failed.

    Args:
        error: what was raised.

    Returns:
        False for errors that are meant (`SteadyGradError`), of the system, of a script that does
        not parse or recurses without end, and for what functions in the place of a framework's
        say of their arguments.
    """
    if not isinstance(error, Exception) or isinstance(error, _OF_NO_STATEMENT):
        return False
    entries = _entries(error)
    if not entries or not is_ours(entries[-1]):
        return False
    return "dropins" not in entries[-1].tb_frame.f_code.co_filename


def raised_by_handler(error: BaseException) -> bool:
    """Whether a signal handler raised it, such as one that ends what takes too long.

    Python calls handlers wherever the main thread is, in code of ours too.
    """
    codes = {_code_of(signal.getsignal(each)) for each in signal.valid_signals()}
    return any(entry.tb_frame.f_code in codes for entry in _entries(error))


def _code_of(handler: object) -> object:
    function = getattr(handler, "func", handler)  # a functools.partial has one
    called = function if hasattr(function, "__code__") else type(function).__call__
    return getattr(called, "__code__", None)


class StepsAside:
    """Takes our frames off the start of a traceback that passes: what failed lies below them.

    To stand around the outermost call of a function that is called through ours. An error of ours
    keeps them, unless no other frame is left: what is called here may have none, or have taken
    them off (JAX and Keras do). Python 3.10 keeps them all.

    Example:
        >>> with StepsAside():
        ...     pass
    """

    def __enter__(self) -> None:
        """Nothing to do yet."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: object
    ) -> None:
        if error is None:
            return
        entry = error.__traceback__
        if entry is not None and entry.tb_next is not None and raised_by_us(error):
            return
        while entry is not None and is_ours(entry):
            entry = entry.tb_next
        error.__traceback__ = entry


aside = StepsAside()


def cause(error: BaseException) -> str:
    """Say whose fault an error is that has ended part of the observation.

    Args:
        error: what was raised below code of ours.

    Returns:
        Words to put behind what has ended: empty where the error explains itself.

    Example:
        >>> cause(PermissionError(13, "Permission denied")), cause(ValueError("x"))
        ('', ', by a fault of ours')
    """
    if isinstance(error, (SteadyGradError, OSError, MemoryError)):
        return ""
    for entry in reversed(_entries(error)):
        path = entry.tb_frame.f_code.co_filename
        if is_ours(entry):
            break
        if not path.startswith(_LIBRARIES) and "-packages" not in path:
            return f", by an error in {os.path.basename(path)}, line {entry.tb_lineno}"
    return ", by a fault of ours"


def _entries(error: BaseException) -> list[TracebackType]:
    entries: list[TracebackType] = []
    entry = error.__traceback__
    while entry is not None:
        entries.append(entry)
        entry = entry.tb_next
    return entries
