"""How a value leaves compiled code for the host: by a queue in C, or by a debug callback.

A callback is dear: JAX starts what has one by a slow way, and the step waits for Python. Where
the C core serves, a custom call copies the value into a queue instead, and a thread of ours takes
what has come, a batch at a time. Whichever way values go, they are heard in the order in which
they were told.
"""

from __future__ import annotations

import contextlib
import functools
import math
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from steadygrad.jax import native
from steadygrad.launch.jax_script.internals import Tell, axis_sizes, teller
from steadygrad.runlog.hidden import stay_hidden
from steadygrad.runlog.pausing import PausingThread

SOON, LATE = 0.05, 0.2
"""Seconds between two looks at the queue: while something comes, and at most."""
AT_ONCE = 8
"""Values heard before the script's own threads are let in."""


class Moment(NamedTuple):
    """When a value was told.

    Attributes:
        time: seconds since the epoch.
        number: how many the queue had taken before; all, for what came by another way.
    """

    time: float
    number: float


Hear = Callable[[ArrayLike, Moment], None]


class Hearer(NamedTuple):
    """Who hears what a place in compiled code tells, and what that is."""

    hear: Hear
    dtype: np.dtype
    shape: tuple[int, ...]


class Mailbox:
    """The queue of this process, and who hears what comes by it.

    Attributes:
        inherited: this process is a fork: what its parent has started, it waits for in vain.
    """

    def __init__(self) -> None:
        self.inherited = False
        self._hearers: list[Hearer] = []
        self._came: deque[tuple[int, float, int, bytes]] = deque()
        self._lock = threading.RLock()
        self._wake, self._pause = threading.Event(), SOON
        self._thread: PausingThread | None = None

    def __bool__(self) -> bool:
        """Whether anything was ever to come by it."""
        return bool(self._hearers)

    def place(self, hear: Hear, value: jax.Array) -> int:
        """The number under which a place in compiled code tells its values.

        Args:
            hear: is called with each.
            value: one of them, traced.
        """
        self._hearers.append(Hearer(hear, value.dtype, value.shape))
        if self._thread is None:
            turns = self._look, self._wake.set, self._over, self._forked
            self._thread = PausingThread(*turns)
            self._thread.start()
        return len(self._hearers) - 1

    def empty(self, gently: bool = False) -> bool:
        """Have all heard that has come.

        Args:
            gently: let other threads in between.

        Returns:
            Whether there was anything.
        """
        queue = native.queue() if self else None
        if queue is None:
            return False
        with self._lock:
            self._came.extend(queue.take())
            some = bool(self._came)
            while self._came:
                self._hear(*self._came.popleft())
                if gently and len(self._came) % AT_ONCE == 0:
                    time.sleep(0)
        return some

    def _hear(self, who: int, when: float, number: int, what: bytes) -> None:
        if who >= len(self._hearers):
            return  # an executable that another process has compiled
        hearer = self._hearers[who]
        if len(what) == hearer.dtype.itemsize * math.prod(hearer.shape):
            value = np.frombuffer(what, hearer.dtype).reshape(hearer.shape)
            hearer.hear(value, Moment(when, number))

    def _look(self) -> bool:
        """One turn of the thread, none of which is the last."""
        self._wake.wait(self._pause)
        self._wake.clear()
        self._pause = SOON if self.empty(gently=True) else min(2 * self._pause, LATE)
        stay_hidden()
        return False

    def _over(self, error: BaseException | None) -> None:
        """No thread looks any more, or the system allows none: the end of the run does."""
        del error
        self._thread = None

    def _forked(self) -> None:
        """In a forked child: what waits is the parent's."""
        self.inherited, self._lock, self._thread = True, threading.RLock(), None
        self._came.clear()
        queue = native.queue() if self else None
        if queue is not None:
            queue.take()


MAIL = Mailbox()


def tell(hear: Hear, value: jax.Array) -> None:
    """Have compiled code tell a value each time it runs.

    Args:
        hear: is called with each, from another thread; it must not raise.
        value: traced.
    """
    send = _way(value)
    if send is None:
        jax.debug.callback(functools.partial(_called_back, hear), value)
    else:
        send(value, MAIL.place(hear, value), functools.partial(_called_back, hear))


def _way(value: jax.Array) -> Tell | None:
    """How a value can do without a callback; None where it cannot.

    Not so inside of a map over devices. Nor in other threads than the main one: there is nothing by
    which to wait at the end for what they have started.
    """
    if threading.current_thread() is not threading.main_thread() or axis_sizes():
        return None
    if native.queue() is None or not native.knows(value.dtype):
        return None
    return teller(native.TELL)


def _called_back(hear: Hear, value: ArrayLike) -> None:
    MAIL.empty()
    hear(value, now())


def now() -> Moment:
    """The moment of what has come by another way than the queue."""
    return Moment(time.time(), math.inf)


def told_so_far() -> int:
    """How much has come by the queue, heard or not."""
    queue = native.queue() if MAIL else None
    return 0 if queue is None else queue.count()


def settle() -> None:
    """Wait for what is still running, and have all of it heard."""
    jax.effects_barrier()
    if MAIL and not MAIL.inherited:
        for array in jax.live_arrays():
            with contextlib.suppress(Exception):  # deleted meanwhile, or its computation failed
                array.block_until_ready()
        with contextlib.suppress(Exception):
            jax.block_until_ready(_last_of_all()())
    MAIL.empty()


@functools.cache
def _last_of_all() -> Callable[[], jax.Array]:
    """A computation that is done when all are that this thread has started before.

    JAX has a device do them in their order, and relies on it in `effects_barrier`. It is
    compiled ahead, so that it also runs while something is traced.
    """
    made: Callable[[], jax.Array] = jax.jit(lambda: jnp.zeros(())).lower().compile()
    return made


def lost() -> int:
    """How much was lost since the last call, for want of memory."""
    queue = native.queue() if MAIL else None
    return 0 if queue is None else queue.lost()
