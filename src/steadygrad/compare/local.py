"""Cells in processes of this machine."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed

from steadygrad.compare.cells import Cell, Grid


class LocalEngine:
    """Runs cells here, several at a time."""

    def run(
        self, grid: Grid, cells: Sequence[Cell], jobs: int
    ) -> Generator[tuple[Cell, int, float], None, None]:
        """Run cells.

        Args:
            grid: that they belong to.
            cells: which of them.
            jobs: processes at a time; 0 for one a core.

        Yields:
            Each cell as it ends, with its exit code and its seconds.
        """
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        at_once = jobs or cores or 1
        environment = dict(os.environ)
        environment.setdefault("OMP_NUM_THREADS", str(max(1, (cores or 1) // at_once)))
        children: set[subprocess.Popen[bytes]] = set()
        with ThreadPoolExecutor(at_once) as pool:
            waiting = {pool.submit(_run, grid, cell, environment, children): cell for cell in cells}
            try:
                for future in as_completed(waiting):
                    yield (waiting[future], *future.result())
            except BaseException:  # an interrupt: leave no process behind
                for future in waiting:
                    future.cancel()
                for child in list(children):
                    child.terminate()
                raise


def _run(
    grid: Grid, cell: Cell, environment: dict[str, str], children: set[subprocess.Popen[bytes]]
) -> tuple[int, float]:
    began = time.perf_counter()
    with cell.log.open("wb") as log:
        child = subprocess.Popen(
            grid.command(cell),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
        )
        children.add(child)
        code = child.wait()
        children.discard(child)
    return code, time.perf_counter() - began
