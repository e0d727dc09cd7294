"""Live objects, found without harm to threads that go on meanwhile."""

from __future__ import annotations

import gc
import sys
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

from steadygrad.torch.internals.alive import alive


class Lamp:
    """What is looked for."""


def test_a_tuple_that_another_thread_is_filling_gets_full() -> None:
    begun, go_on, full = threading.Event(), threading.Event(), []

    def numbers() -> Iterator[int]:
        yield 0
        begun.set()
        go_on.wait(10.0)
        yield 1

    thread = threading.Thread(target=lambda: full.append(tuple(numbers())))

    def between(frame: FrameType, event: str, function: Any) -> None:
        if event == "c_return" and function is gc.get_objects:  # threads may take turns here
            go_on.set()
            thread.join()

    lamp = Lamp()
    thread.start()
    begun.wait(10.0)
    sys.setprofile(between)
    try:
        found = alive(Lamp)
    finally:
        sys.setprofile(None)
    go_on.set()
    thread.join()
    assert found == [lamp]
    assert full == [(0, 1)]
