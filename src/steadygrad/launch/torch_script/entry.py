"""The way in for whatever a script's calls tell: one thread at a time, timed, faults told."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import ParamSpec, TypeVar

import numpy as np

from steadygrad.errors import NonFiniteError
from steadygrad.launch.contracts import RunContext

Answer = TypeVar("Answer")
P = ParamSpec("P")


class Entry:
    """To stand around what is done at a call of the script; a failure there is none of its own.

    Args:
        context: the run, which is told of a failure.

    Attributes:
        seconds: spent inside so far.
        lock: held inside. What is done at every step takes it by itself, and tells of a failure by
            `failed`: ``with`` costs two calls.
    """

    def __init__(self, context: RunContext) -> None:
        self.seconds = 0.0
        self._context = context
        self.lock = threading.RLock()
        self._entered: list[float] = []

    def __enter__(self) -> None:
        self.lock.acquire()
        self._entered.append(time.perf_counter())

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool:
        self.seconds += time.perf_counter() - self._entered.pop()
        self.lock.release()
        return isinstance(error, Exception) and self.failed(error)

    def inside(self, act: Callable[P, Answer], *args: P.args, **kwargs: P.kwargs) -> Answer | None:
        """One call inside, with one call of ours around it, where ``with`` makes two.

        Returns:
            What it returns; None where it fails.
        """
        self.lock.acquire()
        began = time.perf_counter()
        try:
            return act(*args, **kwargs)
        except Exception as error:
            if not self.failed(error):
                raise
        finally:
            self.seconds += time.perf_counter() - began
            self.lock.release()
        return None

    def failed(self, error: Exception) -> bool:
        """Tell of a failure of ours; False where it is the script's to hear of."""
        if isinstance(error, NonFiniteError):
            return False  # what --on-nonfinite raise asks for
        self._context.trouble("part of the run was not observed", error)
        return True


def figures() -> np.errstate:
    """To stand around arithmetic with figures: they may be inf, and a script may have NumPy raise.

    It costs a microsecond, which what every step does without figures is spared.
    """
    return np.errstate(all="ignore")
