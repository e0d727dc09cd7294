"""A bounded queue with a hidden thread behind it: the way off the hot path.

The training thread only appends to a deque, which needs no lock. The thread looks at
it every few tenths of a second instead of being woken, since waking a thread costs more
than the append. When the queue is full the producer waits a moment, then drops and counts:
a slow disk must neither stop a training nor eat its memory. A forked child inherits the
object without the thread, so there every method returns at once. In the parent the thread ends
before a fork and another begins after it: so no fork happens in the midst of a commit, and Python
3.12 has no thread of ours to warn of.
"""

from __future__ import annotations

import math
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar, cast

from steadygrad.runlog.hidden import HiddenThread, stay_hidden

BUSY_SHARE = 0.01
"""A thread that computes less of the time than this does nothing."""

REST = 300.0
"""Times as long as the thread has computed until it looks at the queue again."""

FORK_SECONDS = 0.5
"""How long a fork waits for all threads that are at work; it then happens beside them."""

Item = TypeVar("Item")

_LIVE: weakref.WeakSet[Pump[object]] = weakref.WeakSet()


def _pause_before_fork() -> None:
    pumps = list(_LIVE)
    deadline = time.monotonic() + FORK_SECONDS
    asked = [pump for pump in pumps if pump.ask_to_pause(deadline)]
    for pump in asked:
        pump.await_pause(deadline)


def _resume_after_fork() -> None:
    for pump in list(_LIVE):
        pump.resume()


def _disown_after_fork() -> None:
    for pump in list(_LIVE):
        pump.stopped = True


if hasattr(os, "register_at_fork"):  # Windows has no fork
    os.register_at_fork(
        before=_pause_before_fork,
        after_in_parent=_resume_after_fork,
        after_in_child=_disown_after_fork,
    )


def bytes_of_step(tensors: int) -> int:
    """About what a step with the figures of so many tensors takes while it waits."""
    return 1000 + 64 * tensors


class Pump(Generic[Item]):
    """Hands items from a training thread to a consumer in a thread of its own.

    Args:
        consume: called in the thread with the items since the last call, often empty.
        finish: called in the thread once, after the last item.
        fail: called in the thread with what `consume` or `finish` raised; the end of it. Called
            at once where the system allows no further thread.
        interval: least seconds between two looks at the queue.
        longest: most seconds between them, where a look is dear (`REST`): what the thread computes
            is taken from the training where cores are few. 0 for always ``interval``.
        max_bytes: how much may wait, going by the size that `put` is told.
        patience: seconds for which `put` waits for room before it drops.
        batch: most items handed over in one call.
        deaf: as `HiddenThread` has it.

    Attributes:
        longest: as given; may be set.
        stopped: no item goes anywhere any more.
    """

    def __init__(
        self,
        consume: Callable[[list[Item]], None],
        finish: Callable[[], None],
        fail: Callable[[BaseException], None],
        *,
        interval: float = 0.2,
        longest: float = 0.0,
        max_bytes: int = 32 << 20,
        patience: float = 1.0,
        batch: int = 1024,
        deaf: bool = True,
    ) -> None:
        self.stopped = False
        self.longest = longest
        self._consume, self._finish, self._fail = consume, finish, fail
        self._interval, self._max_bytes = interval, max_bytes
        self._rest = interval
        self._patience, self._batch = patience, batch
        self._queue: deque[Item | threading.Event] = deque()
        self._wake = threading.Event()
        self._congested = False
        self._closing = False
        self._pausing = self._paused = False
        self._turn = threading.Lock()  # held for a moment, to read or change the two
        self._coming_or_going = threading.Lock()  # held through a fork, and through `close`
        self._fork_thread = 0
        self._deaf = deaf
        self._clock: int | None = None
        self._pid = os.getpid()
        _LIVE.add(cast("Pump[object]", self))
        self._thread: HiddenThread | None = None
        self._start()

    def _start(self) -> None:
        try:
            self._thread = HiddenThread(self._run, deaf=self._deaf)
        except RuntimeError as error:
            self.stopped = True
            self._release_waiters()
            self._fail(error)

    @property
    def usable(self) -> bool:
        """Whether items still go anywhere: not after a failure, `close`, or a fork."""
        return not (self.stopped or self._closing) and os.getpid() == self._pid

    def put(self, item: Item, size: int) -> bool:
        """Queue an item of about ``size`` bytes; False where it had to be dropped."""
        # the hot path: the at-fork hook stands for a look at the process id here
        if self.stopped or self._closing:
            return False
        waiting = len(self._queue) * size
        if waiting > self._max_bytes // 2:
            self._wake.set()
            if waiting > self._max_bytes and not self._room_comes(size):
                return False
        self._queue.append(item)
        return True

    def _room_comes(self, size: int) -> bool:
        if self._congested:  # waited in vain once: wait again only after a batch got through
            return False
        deadline = time.monotonic() + self._patience
        while len(self._queue) * size > self._max_bytes and not self.stopped:
            if time.monotonic() > deadline:
                self._congested = True
                return False
            time.sleep(0.001)
        return not self.stopped

    def flush(self, timeout: float = 10.0) -> bool:
        """Wait until everything queued was consumed; False where that took too long."""
        if not self.usable or self._thread is None or self._thread.is_current:
            return False
        token = threading.Event()
        self._queue.append(token)
        self._wake.set()
        return token.wait(timeout) and not self.stopped

    def close(self, timeout: float = 10.0, idle: float = math.inf) -> bool:
        """Consume what is queued, finish, and end the thread, within ``timeout`` seconds.

        Args:
            timeout: most seconds to wait.
            idle: give up sooner, once the thread has computed nothing for so many seconds.

        Returns:
            Whether the thread has ended.
        """
        if os.getpid() != self._pid:
            return False
        self._closing = True
        self._wake.set()
        if self._thread is None or self._thread.is_current:
            return self._thread is None
        if self._coming_or_going.acquire(timeout=timeout):
            try:
                self._join(self._thread, timeout, idle)
            finally:
                self._coming_or_going.release()
        return not self._thread.alive

    def ask_to_pause(self, deadline: float) -> bool:
        """Have the thread end where it is between two batches, for `resume` to begin another.

        Args:
            deadline: until when (`time.monotonic`) to wait for another thread's fork or `close`.

        Returns:
            Whether it was asked.
        """
        thread = self._thread
        if self.stopped or thread is None or thread.is_current or os.getpid() != self._pid:
            return False
        if not self._coming_or_going.acquire(timeout=max(0.0, deadline - time.monotonic())):
            return False
        self._fork_thread = threading.get_ident()
        self._pausing = True
        self._wake.set()
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
        if self._fork_thread != threading.get_ident():
            return
        self._fork_thread = 0
        with self._turn:
            self._pausing = False
            paused, self._paused = self._paused, False
        if paused:
            self._start()
        self._coming_or_going.release()

    def _join(self, thread: HiddenThread, timeout: float, idle: float) -> None:
        deadline = time.monotonic() + timeout
        while thread.alive and (left := deadline - time.monotonic()) > 0:
            computed = self._computed()
            thread.join(min(left, idle))
            if self._computed() - computed < BUSY_SHARE * idle < math.inf:
                return

    def _computed(self) -> float:
        """Processor seconds of the thread so far; 0 where the system does not tell."""
        try:
            return 0.0 if self._clock is None else time.clock_gettime(self._clock)
        except OSError:  # the thread is gone
            return 0.0

    def _run(self) -> None:
        if hasattr(time, "pthread_getcpuclockid"):
            self._clock = time.pthread_getcpuclockid(threading.get_ident())
        paused = False
        try:
            while not (paused or self._round()):
                paused = self._pauses()
        except Exception as error:
            self.stopped = True
            self._fail(error)
        finally:
            if not paused:
                self.stopped = True
                self._release_waiters()

    def _pauses(self) -> bool:
        with self._turn:
            self._paused = self._pausing
            return self._paused

    def _round(self) -> bool:
        closing = self._closing
        if not closing:
            self._wake.wait(self._rest)
            self._wake.clear()
            closing = self._closing
        computed = self._computed()
        while True:
            items, tokens = self._drain()
            try:
                self._consume(items)
            except BaseException:
                self.stopped = True  # before anybody who waits in `flush` looks
                raise
            finally:
                for token in tokens:
                    token.set()
                stay_hidden()
            self._congested = False
            if not self._queue or (self._pausing and not closing):
                break
        dear = min(REST * (self._computed() - computed), self.longest)
        self._rest = max(self._interval, dear)
        if closing:
            self._finish()
        return closing

    def _drain(self) -> tuple[list[Item], list[threading.Event]]:
        items: list[Item] = []
        tokens: list[threading.Event] = []
        while self._queue and len(items) < self._batch:
            item = self._queue.popleft()
            if isinstance(item, threading.Event):
                tokens.append(item)
            else:
                items.append(item)
        return items, tokens

    def _release_waiters(self) -> None:
        while self._queue:
            item = self._queue.popleft()
            if isinstance(item, threading.Event):
                item.set()
