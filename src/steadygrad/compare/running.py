"""Running the cells of a grid, on this machine or on a Ray cluster."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import closing

from steadygrad.compare.cells import Cell, Grid
from steadygrad.compare.local import LocalEngine
from steadygrad.compare.on_ray import RayEngine
from steadygrad.errors import UsageError


def engine_of(name: str) -> LocalEngine | RayEngine:
    """What runs the cells.

    Args:
        name: ``local``, ``ray`` (the cluster that Ray finds, else one on this machine), or
            ``ray:ADDRESS``.

    Raises:
        UsageError: none of these.

    Example:
        >>> engine_of("ray:10.0.0.1:6379").address
        '10.0.0.1:6379'
    """
    kind, _, address = name.partition(":")
    if name == "local":
        return LocalEngine()
    if kind == "ray" and (address or name == "ray"):
        return RayEngine(address)
    raise UsageError(
        f"there is no engine {name!r}: type --engine local, --engine ray or --engine ray:HOST:PORT"
    )


def run_cells(
    grid: Grid,
    *,
    jobs: int = 0,
    engine: str = "local",
    done: Callable[[Cell, bool], None] = lambda cell, reused: None,
) -> dict[Cell, dict[str, object]]:
    """Run every cell that is not finished, several at a time.

    Args:
        grid: what to compare.
        jobs: trainings at a time; 0 for as many as the engine has room for.
        engine: as `engine_of` takes it.
        done: called after each cell, with whether it was finished already.

    Returns:
        How each cell ended: ``exit`` (its exit code) and ``seconds``.

    Raises:
        UsageError: no such engine, or its cluster does not answer.
        MissingExtraError: it is Ray's, which is not installed.
    """
    chosen = engine_of(engine)
    grid.folder.mkdir(parents=True, exist_ok=True)
    ended = {cell: note for cell in grid.cells if (note := cell.finished())}
    for cell in ended:
        done(cell, True)
    waiting = [cell for cell in grid.cells if cell not in ended]
    for cell in waiting:
        cell.note.unlink(missing_ok=True)
        cell.run_file.unlink(missing_ok=True)
    if not waiting:
        return ended
    with closing(chosen.run(grid, waiting, jobs)) as trained:  # an interrupt: leave no process
        for cell, code, seconds in trained:
            ended[cell] = {"digest": cell.digest, "exit": code, "seconds": seconds}
            cell.note.write_text(json.dumps(ended[cell]))
            done(cell, False)
    return ended
