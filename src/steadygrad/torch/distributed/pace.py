"""How long this process was busy by itself, without backward passes and without waiting.

Ranks that train together wait for each other, so that a step takes as long on all of them. What
differs is the time before they meet: loading data, the forward pass, logging. It is the wall time
outside of backward passes, less what was waited for collectives (`Work.wait`; where that
does not stop the host, as on a GPU, there is nothing to take off).
"""

from __future__ import annotations

import threading
import time
from typing import Any

from steadygrad.torch.internals import sites
from steadygrad.torch.internals.inlay import Visit
from steadygrad.torch.internals.patches import PatchSet
from steadygrad.torch.internals.private import collective_work


class Pace:
    """A clock that stands still in backward passes and while a collective is waited for.

    Example:
        >>> pace = Pace()
        >>> pace.waited(1e9)  # more than there was: no time is negative
        >>> pace.busy()
        0.0
    """

    def __init__(self) -> None:
        self._busy = 0.0
        self._waited = 0.0
        self._mark = time.perf_counter()
        self._thread = threading.get_ident()
        self._pauses = 0

    def waited(self, seconds: float) -> None:
        """A collective was waited for."""
        if not self._pauses and threading.get_ident() == self._thread:
            self._waited += seconds

    def pause(self) -> None:
        """A backward pass begins."""
        if not self._pauses:
            self._add_up()
        self._pauses += 1

    def go_on(self) -> None:
        """It is over."""
        self._pauses = max(self._pauses - 1, 0)
        self._mark, self._waited = time.perf_counter(), 0.0

    def busy(self) -> float:
        """Seconds so far."""
        if not self._pauses:
            self._add_up()
        return self._busy

    def _add_up(self) -> None:
        now = time.perf_counter()
        self._busy += max(now - self._mark - self._waited, 0.0)
        self._mark, self._waited = now, 0.0


_pace = Pace()


class _TimedBackward(Visit):
    def ends(self) -> None:
        _pace.go_on()


def _backward(arguments: tuple[object, ...]) -> Visit | None:
    if sites.inside_backward():
        return None
    _pace.pause()
    return _TimedBackward(arguments)


def _make(patches: PatchSet) -> None:
    patches.add(sites.BACKWARD.listen(_backward))
    work = collective_work()
    original = work.wait

    def wait(self: Any, *args: Any, **kwargs: Any) -> Any:
        began = time.perf_counter()
        try:
            return original(self, *args, **kwargs)
        finally:
            _pace.waited(time.perf_counter() - began)

    patches.replace(work, "wait", wait)


_measuring = PatchSet(_make)


def measure_pace(holder: object) -> Pace:
    """The pace of this process, followed for as long as the holder is alive."""
    _measuring.hold(holder)
    return _pace
