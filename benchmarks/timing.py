"""Interleaved timing: every contender once a round, the minimum over the rounds.

The minimum is what the work takes when nothing else disturbs it; taking turns gives a
disturbance the same chance to hit each contender. On a machine with other work, processor
time tells more than the clock on the wall, as long as there is one thread.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Contender:
    """One thing to time.

    Attributes:
        name: as it stands in the table.
        run: the work.
        prepare: what must stand before each run, and is not timed.
        target: the ratio to reach against the first contender; None for none.
    """

    name: str
    run: Callable[[], object]
    prepare: Callable[[], object] = field(default=lambda: None)
    target: float | None = None


def processor_time() -> float:
    """Seconds of processor time of this process and of its children that have ended."""
    used = os.times()
    return time.process_time() + used.children_user + used.children_system


CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": processor_time}


def best_of(
    contenders: list[Contender], seconds: float, clock: str = "wall", least: int = 5
) -> list[float]:
    """The least time of each, in seconds, over rounds for about so long."""
    now = CLOCKS[clock]
    best = [float("inf")] * len(contenders)
    for contender in contenders:  # warm up: compile, allocate, fault pages in
        contender.prepare()
        contender.run()
    end, rounds = time.monotonic() + seconds, 0
    while rounds < least or time.monotonic() < end:
        for i, contender in enumerate(contenders):
            contender.prepare()
            start = now()
            contender.run()
            best[i] = min(best[i], now() - start)
        rounds += 1
    return best
