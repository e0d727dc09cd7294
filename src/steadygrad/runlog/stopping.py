"""Ending a training from outside of it: asked for by an alert, done between two steps."""

from __future__ import annotations

import ctypes
import threading


class TrainingStopped(SystemExit):
    """Raised where a training is ended because an alert asked for it.

    Like `sys.exit`, it passes ``except Exception`` and runs ``finally`` and exit functions. A
    script that does not catch it ends with status 1 and the reason on standard error.

    Args:
        reason: what was found.

    Example:
        >>> str(TrainingStopped("SG101 at step 7: NaN in fc."))
        'steadygrad: training stopped: SG101 at step 7: NaN in fc.'
    """

    reason = "an alert asked for it"
    """The last one that was asked for, for a training that is interrupted."""

    def __init__(self, reason: str = "") -> None:
        super().__init__(f"steadygrad: training stopped: {reason or self.reason}")


def interrupt(reason: str) -> None:
    """Raise `TrainingStopped` in the main thread, wherever that is.

    For a training that never comes by: one whose steps are all in compiled code.

    Args:
        reason: what was found.
    """
    TrainingStopped.reason = reason
    main = ctypes.c_ulong(threading.main_thread().ident or 0)
    ctypes.pythonapi.PyThreadState_SetAsyncExc(main, ctypes.py_object(TrainingStopped))
