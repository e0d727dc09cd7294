"""A bounded queue with a hidden thread behind it: the way off the hot path.

The training thread only appends to a deque, which needs no lock. The thread looks at
it every few tenths of a second instead of being woken, since waking a thread costs more
than the append. When the queue is full the producer waits a moment, then drops and counts:
a slow disk must neither stop a training nor eat its memory. A forked child inherits the
object without the thread (`steadygrad.runlog.pausing`), so there every method returns at once.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sized
from typing import Any, Generic, NamedTuple, TypeVar

from steadygrad.runlog.hidden import stay_hidden
from steadygrad.runlog.pausing import PausingThread

REST = 1000.0
"""Times as long as the thread has computed until it looks at the queue again."""

Item = TypeVar("Item")


def bytes_of_step(tensors: int) -> int:
    """About what a step with the figures of so many tensors takes while it waits."""
    return 1000 + 64 * tensors


class ShortWay(NamedTuple):
    """How C does what `Pump.put` does while there is room.

    Attributes:
        queue: of the items that wait.
        append: adds one to it.
        room: there is room while there are fewer.
        shut: owners and attributes: where one of these is set, no item goes anywhere.
    """

    queue: Sized
    append: Callable[[Any], None]
    room: int
    shut: tuple[tuple[object, str], ...]


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
        self._thread = PausingThread(
            self._round, self._wake.set, self._over, self._disowned, deaf=deaf
        )
        self._thread.start()

    def _over(self, error: BaseException | None) -> None:
        self.stopped = True
        try:
            if error is not None:
                self._fail(error)
        finally:
            self._release_waiters()

    def _disowned(self) -> None:
        self.stopped = True

    @property
    def usable(self) -> bool:
        """Whether items still go anywhere: not after a failure, `close`, or a fork."""
        return not (self.stopped or self._closing) and self._thread.is_here

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

    def short_way(self, size: int) -> ShortWay:
        """`put` for items of about ``size`` bytes, as long as there is room."""
        room = self._max_bytes // 2 // size + 1
        shut = ((self, "stopped"), (self, "_closing"))
        return ShortWay(self._queue, self._queue.append, room, shut)

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
        if not self.usable or self._thread.is_current:
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
        if not self._thread.is_here:
            return False
        self._closing = True
        self._wake.set()
        return self._thread.end(timeout, idle)

    def _round(self) -> bool:
        closing = self._closing
        if not closing:
            self._wake.wait(self._rest)
            self._wake.clear()
            closing = self._closing
        computed = self._thread.computed
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
            if not self._queue or (self._thread.pausing and not closing):
                break
        dear = min(REST * (self._thread.computed - computed), self.longest)
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
