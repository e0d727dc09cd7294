"""A thread that the process does not notice.

Scripts join every thread of `threading.enumerate()`, or wait until `threading.active_count()`
is 1: a thread of ours that stood there would never let them go on. So it is started below
`threading`, which then neither lists nor counts it, waits for it at exit, nor sets a tracer
or profiler on it. As with a daemon thread, whoever needs it to end must say so and wait.
"""

from __future__ import annotations

import _thread
import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator

SYNCHRONOUS = ("SIGABRT", "SIGBUS", "SIGFPE", "SIGILL", "SIGSEGV", "SIGSYS", "SIGTRAP")
"""Signals that a thread causes itself: to block these would hide a crash."""


class HiddenThread:
    """Runs a function in a thread of its own, from now on.

    Args:
        target: the function; it must not raise.
        deaf: block signals there, so that none meant for the script (which may wait for it by
            `signal.sigwait`) is delivered to this thread. Processes started there inherit that.

    Raises:
        RuntimeError: the system allows no further thread.

    Example:
        >>> said = []
        >>> thread = HiddenThread(lambda: said.append("done"))
        >>> thread.join(5.0), said
        (True, ['done'])
    """

    def __init__(self, target: Callable[[], object], *, deaf: bool = True) -> None:
        self._target = target
        self._running = _thread.allocate_lock()
        self._running.acquire()
        self._task = ""
        with _blocked_signals() if deaf else contextlib.nullcontext():
            self._ident = _thread.start_new_thread(self._run, ())

    def _run(self) -> None:
        self._task = f"/proc/self/task/{_thread.get_native_id()}"
        try:
            self._target()
        finally:
            stay_hidden()
            self._running.release()

    @property
    def alive(self) -> bool:
        """Whether the function has not returned yet."""
        return self._running.locked()

    @property
    def listed_by_system(self) -> bool:
        """Whether the system still counts it: for a moment after its end. False without /proc."""
        return os.path.exists(self._task)

    @property
    def is_current(self) -> bool:
        """Whether the caller runs in this thread."""
        return _thread.get_ident() == self._ident

    def join(self, timeout: float = -1.0) -> bool:
        """Wait for the end.

        Args:
            timeout: most seconds to wait; negative for no limit.

        Returns:
            Whether it has ended.
        """
        if self._running.acquire(timeout=min(timeout, threading.TIMEOUT_MAX)):
            self._running.release()
        return not self.alive


def stay_hidden() -> None:
    """Take this thread off `threading`'s tables, where a library that asked for it has put it.

    `threading.current_thread()` (every line of `logging` calls it) lists the thread it is
    called in. To be called now and then, in a `HiddenThread`.
    """
    active: dict[int, threading.Thread] = getattr(threading, "_active", {})
    thread = active.get(_thread.get_ident())
    if isinstance(thread, threading._DummyThread):
        active.pop(_thread.get_ident(), None)


@contextlib.contextmanager
def _blocked_signals() -> Iterator[None]:
    """Block signals while a thread is made, which inherits that."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    spared = {getattr(signal, name) for name in SYNCHRONOUS if hasattr(signal, name)}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals() - spared)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
