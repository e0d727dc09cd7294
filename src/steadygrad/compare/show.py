"""`steadygrad compare`: run the grid, then show it as a table, as JSON and as a page."""

from __future__ import annotations

import json
from itertools import compress
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from steadygrad.compare.cells import Cell, Grid, run_cells
from steadygrad.compare.measuring import measure
from steadygrad.compare.page import write_page
from steadygrad.compare.rows import cells, troubles
from steadygrad.compare.table import Comparison, judge
from steadygrad.text import printable


def compare(grid: Grid, *, jobs: int = 0, as_json: bool = False) -> Comparison:
    """Run a grid, print what came of it, and write ``compare.json`` and ``compare.html``.

    Args:
        grid: what to compare.
        jobs: processes at a time; 0 for one a core.
        as_json: print JSON in place of the table.

    Returns:
        The comparison.
    """
    found = run_grid(grid, jobs=jobs)
    text = json.dumps(found.to_dict(), indent=1, allow_nan=False)
    (grid.folder / "compare.json").write_text(text + "\n")
    page = write_page(found, grid)
    if as_json:
        print(text)
        return found
    console = Console(highlight=False, soft_wrap=True)
    console.print(table(found))
    for line in (found.sentence, *troubles(found), f"Page: {page}"):
        console.print(Text(printable(line)))
    return found


def run_grid(grid: Grid, *, jobs: int = 0) -> Comparison:
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

        ended = run_cells(grid, jobs=jobs, done=done)
    outcomes = [measure(cell, ended[cell]) for cell in grid.cells]
    return judge(outcomes, [Path(grid.script).name, *grid.arguments])


def table(found: Comparison) -> Table:
    """The comparison as a terminal table."""
    shown = Table(box=SIMPLE_HEAD, pad_edge=False)
    for name in ("policy", "loss", "spread", "standing", "diverged", "clipped"):
        # a policy cut short would be another one
        shown.add_column(name, overflow="fold")
    rare = [any(row.mean(name) > 0 for row in found.rows) for name in ("unstable", "skip_rate")]
    there = [*[True] * 6, *rare, True, True]
    for name in compress(("unstable", "skipped", "cosine", "time"), there[6:]):
        shown.add_column(name)
    for row in found.rows:
        style = {"best": "bold", "diverged": "red"}.get(row.standing, "")
        texts = (Text(printable(t).removesuffix(" with the best")) for t in cells(row))
        shown.add_row(*compress(texts, there), style=style)
    return shown
