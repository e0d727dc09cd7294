"""A hidden thread that is not there while the process forks.

A fork copies the thread that forks and no other: what another was about is then left half done in
the child, a commit or a lock. So in the parent such a thread ends between two turns before the
fork, and another begins after it; no fork happens in the midst of a commit, and Python 3.12 has no
thread of ours to warn of. (Python 3.13 and newer count after the fork, so they warn of the other.)
The child has the object without a thread.
"""

from __future__ import annotations

import math
import os
import threading
import time
import weakref
from collections.abc import Callable

from steadygrad.runlog.hidden import HiddenThread

BUSY_SHARE = 0.01
"""A thread that computes less of the time than this does nothing."""

FORK_SECONDS = 0.5
"""How long a fork waits for all threads that are at work; it then happens beside them."""

_LIVE: weakref.WeakSet[PausingThread] = weakref.WeakSet()


def _pause_before_fork() -> None:
    threads = list(_LIVE)
    deadline = time.monotonic() + FORK_SECONDS
    asked = [thread for thread in threads if thread.ask_to_pause(deadline)]
    for thread in asked:
        thread.await_pause(deadline)


def _resume_after_fork() -> None:
    for thread in list(_LIVE):
        thread.resume()


def _disown_after_fork() -> None:
    for thread in list(_LIVE):
        thread.disown()


if hasattr(os, "register_at_fork"):  # Windows has no fork
    os.register_at_fork(
        before=_pause_before_fork,
        after_in_parent=_resume_after_fork,
        after_in_child=_disown_after_fork,
    )


class PausingThread:
    """Takes turns in a hidden thread, until the last one.

    Args:
        turn: takes one; returns whether it was the last.
        wake: has a turn that waits for something go on at once.
        over: told that no turn comes any more, in the thread, with what `turn` raised or None; at
            once where the system allows no thread.
        disowned: told so in a forked child, where it must wait for nothing.
        deaf: as `HiddenThread` has it.

    Attributes:
        pausing: a fork waits for the end of this turn.

    Example:
        >>> turns = iter([False, False, True])
        >>> said = []
        >>> thread = PausingThread(lambda: next(turns), lambda: None, said.append, lambda: None)
        >>> thread.start()
        >>> thread.end(5.0), said
        (True, [None])
    """

    def __init__(
        self,
        turn: Callable[[], bool],
        wake: Callable[[], object],
        over: Callable[[BaseException | None], None],
        disowned: Callable[[], None],
        *,
        deaf: bool = True,
    ) -> None:
        self._turn, self._wake, self._over = turn, wake, over
        self.disown = disowned
        self._deaf = deaf
        self._pid = os.getpid()
        self._thread: HiddenThread | None = None
        self._clock: int | None = None
        self.pausing = self._paused = False
        self._word = threading.Lock()  # held for a moment, to read or change the two
        self._coming_or_going = threading.Lock()  # held through a fork, and through `end`
        self._fork_thread = 0

    def start(self) -> None:
        """Begin to take turns."""
        _LIVE.add(self)
        try:
            self._thread = HiddenThread(self._run, deaf=self._deaf)
        except RuntimeError as error:
            self._over(error)

    @property
    def is_here(self) -> bool:
        """Whether this is the process that it was started in."""
        return os.getpid() == self._pid

    @property
    def is_current(self) -> bool:
        """Whether the caller runs in it."""
        return self._thread is not None and self._thread.is_current

    @property
    def computed(self) -> float:
        """Processor seconds of the thread so far; 0 where the system does not tell."""
        try:
            return 0.0 if self._clock is None else time.clock_gettime(self._clock)
        except OSError:  # the thread is gone
            return 0.0

    def end(self, timeout: float, idle: float = math.inf) -> bool:
        """Wait for the last turn.

        Args:
            timeout: most seconds to wait.
            idle: give up sooner, once the thread has computed nothing for so many seconds.

        Returns:
            Whether it has ended.
        """
        if self._thread is None or self._thread.is_current:
            return self._thread is None
        if self._coming_or_going.acquire(timeout=timeout):
            try:
                self._join(self._thread, timeout, idle)
            finally:
                self._coming_or_going.release()
        return not self._thread.alive

    def _join(self, thread: HiddenThread, timeout: float, idle: float) -> None:
        deadline = time.monotonic() + timeout
        while thread.alive and (left := deadline - time.monotonic()) > 0:
            computed = self.computed
            thread.join(min(left, idle))
            if self.computed - computed < BUSY_SHARE * idle < math.inf:
                return

    # -- around a fork -------------------------------------------------------------------------

    def ask_to_pause(self, deadline: float) -> bool:
        """Have the thread end where it is between two turns, for `resume` to begin another.

        Args:
            deadline: until when (`time.monotonic`) to wait for another thread's fork or `end`.

        Returns:
            Whether it was asked.
        """
        thread = self._thread
        if thread is None or not thread.alive or thread.is_current or not self.is_here:
            return False
        if not self._coming_or_going.acquire(timeout=max(0.0, deadline - time.monotonic())):
            return False
        self._fork_thread = threading.get_ident()
        self.pausing = True
        self._wake()
        return True

    def await_pause(self, deadline: float) -> None:
        """Wait for the thread that was asked to pause.

        Args:
            deadline: until when (`time.monotonic`) at most.
        """
        thread = self._thread
        if thread is not None and thread.join(max(0.0, deadline - time.monotonic())):
            while thread.listed_by_system and time.monotonic() < deadline:
                time.sleep(0.0001)

    def resume(self) -> None:
        """Go on after `ask_to_pause`; nothing where this thread has not asked."""
        if self._fork_thread != threading.get_ident() or not self.is_here:
            return  # in a child that forks, what was copied says that this thread has asked
        self._fork_thread = 0
        with self._word:
            self.pausing = False
            paused, self._paused = self._paused, False
        if paused:
            self.start()
        self._coming_or_going.release()

    # -- in the thread -------------------------------------------------------------------------

    def _run(self) -> None:
        if hasattr(time, "pthread_getcpuclockid"):
            self._clock = time.pthread_getcpuclockid(threading.get_ident())
        error: BaseException | None = None
        paused = False
        try:
            while not (paused or self._turn()):
                paused = self._pauses()
        except Exception as raised:
            error = raised
        finally:
            if not paused:
                self._over(error)

    def _pauses(self) -> bool:
        with self._word:
            self._paused = self.pausing
            return self._paused
