"""`steadygrad compare`: run the grid, then show it as a table, as JSON and as a page."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import compress
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from steadygrad.compare.cells import Cell, Grid
from steadygrad.compare.measuring import measure
from steadygrad.compare.page import write_page
from steadygrad.compare.rows import cells, troubles
from steadygrad.compare.running import run_cells
from steadygrad.compare.table import Comparison, judge_each
from steadygrad.runlog.facts import harmless
from steadygrad.text import printable

MOST_OPTIMIZERS = 4


def compare(
    grid: Grid, *, jobs: int = 0, engine: str = "local", as_json: bool = False
) -> list[Comparison]:
    """Run a grid, print what came of it, and write ``compare.json`` and ``compare.html``.

    Args:
        grid: what to compare.
        jobs: trainings at a time; 0 for as many as the engine has room for.
        engine: ``local``, ``ray`` or ``ray:ADDRESS``.
        as_json: print JSON in place of the table.

    Returns:
        The comparison; one for each optimizer where the script has several.
    """
    each = run_grid(grid, jobs=jobs, engine=engine)
    text = json.dumps(as_plain(each), indent=1, allow_nan=False)
    (grid.folder / "compare.json").write_text(text + "\n")
    page = write_page(each, grid)
    if as_json:
        print(text)
        return each
    console = Console(highlight=False, soft_wrap=True)
    for one in each[:MOST_OPTIMIZERS]:
        if one.optimizer:
            console.print(Text(printable(one.optimizer), "bold"))
        console.print(table(one))
        for line in (one.sentence, *troubles(one)):
            console.print(Text(printable(line)))
    if len(each) > MOST_OPTIMIZERS:
        console.print(f"{len(each) - MOST_OPTIMIZERS} more optimizers are on the page")
    console.print(Text(printable(f"Page: {page}")))
    return each


def as_plain(each: Sequence[Comparison]) -> dict[str, Any]:
    """Comparisons as JSON holds them: the only one, or those of several optimizers."""
    if len(each) == 1:
        return each[0].to_dict()
    return {"optimizers": [{"optimizer": one.optimizer, **one.to_dict()} for one in each]}


def run_grid(grid: Grid, *, jobs: int = 0, engine: str = "local") -> list[Comparison]:
    """Run a grid under a progress bar on standard error, and judge its outcomes."""
    columns = (TextColumn("{task.description}"), BarColumn(30), MofNCompleteColumn())
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True)) as progress:
        task = progress.add_task("trainings", total=len(grid.cells))
        reused = 0

        def done(cell: Cell, was_there: bool) -> None:
            nonlocal reused
            reused += was_there
            note = f" ({reused} reused)" if reused else ""
            progress.update(task, advance=1, description=f"trainings{note}")

        ended = run_cells(grid, jobs=jobs, engine=engine, done=done)
    outcomes = [outcome for cell in grid.cells for outcome in measure(cell, ended[cell])]
    script = Path(grid.script)
    shown = harmless(grid.arguments, script.parent)  # the page is made to be handed on
    return judge_each(outcomes, [script.name, *shown])


def table(comparison: Comparison) -> Table:
    """The comparison as a terminal table."""
    shown = Table(box=SIMPLE_HEAD, pad_edge=False)
    for name in ("policy", "loss", "spread", "standing", "diverged", "clipped"):
        # a policy cut short would be another one
        shown.add_column(name, overflow="fold")
    rare = [
        any(row.mean(name) > 0 for row in comparison.rows) for name in ("unstable", "skip_rate")
    ]
    there = [*[True] * 6, *rare, True, True]
    for name in compress(("unstable", "skipped", "cosine", "time"), there[6:]):
        shown.add_column(name)
    for row in comparison.rows:
        style = {"best": "bold", "diverged": "red"}.get(row.standing, "")
        texts = (Text(printable(t).removesuffix(" with the best")) for t in cells(row))
        shown.add_row(*compress(texts, there), style=style)
    return shown
