"""`steadygrad demo`: three trainings that differ in clipping alone, and one report on them."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from steadygrad.calibration import calibrate
from steadygrad.errors import CalibrationError
from steadygrad.report import write_report
from steadygrad.text import printable

if TYPE_CHECKING:
    from steadygrad.demos.rnn import DemoOutcome

STEPS = 700
TRAININGS = {"unclipped": "none", "clipped": "", "by-value": "value:0.01"}
"""What each training clips by; the empty one by what the unclipped run's record recommends."""


def demo(out: Path, *, steps: int = STEPS, seed: int = 0) -> Path:
    """Train, compare, and print the way to the report; its path is the last line printed.

    Args:
        out: folder for the run files and the report; the files of an earlier demo are replaced.
        steps: optimizer steps of each training.
        seed: of weights and batches.

    Returns:
        The path of the report.
    """
    from steadygrad.demos import rnn

    rnn.use_one_thread()
    console = Console(highlight=False, soft_wrap=True)
    console.print(
        f"A vanilla RNN reads handwritten digits pixel by pixel: {rnn.PIXELS} times through one "
        "matrix.\nThree trainings, the same weights and batches, different clipping.\n"
    )
    out.mkdir(parents=True, exist_ok=True)
    outcomes = _train_all(console, out, steps, seed)
    console.print()
    for name, outcome in outcomes.items():
        console.print(
            f"{name:<10} {outcome.clip:<11} reads {outcome.accuracy:.0%} of new digits right"
        )
    console.print(
        f"\nThe record of the unclipped run recommends {outcomes['clipped'].clip}: that is what "
        "the second training clips by."
    )
    paths = [outcome.path for outcome in outcomes.values()]
    notes = [" ".join(arithmetic(rnn.RADIUS, rnn.PIXELS))]
    console.print("\n" + "\n".join(notes))
    report = write_report(
        paths,
        out / "report.html",
        force=True,
        title="Exploding gradients, and how to stop them",
        notes=notes,
    )
    console.print("\nThe report compares the three. Open it in a browser:")
    print(printable(str(report)))
    return report


def _train_all(console: Console, out: Path, steps: int, seed: int) -> dict[str, DemoOutcome]:
    from steadygrad.demos.rnn import train

    columns = (
        TextColumn("{task.description:<10}"),
        BarColumn(30),
        TextColumn("{task.completed}/{task.total}"),
    )
    outcomes: dict[str, DemoOutcome] = {}
    with Progress(*columns, TimeElapsedColumn(), console=console) as progress:
        tasks = {name: progress.add_task(name, total=steps, start=False) for name in TRAININGS}
        for name, clip in TRAININGS.items():
            progress.start_task(tasks[name])
            outcomes[name] = train(
                clip or recommended(outcomes["unclipped"].path),
                out / f"{name}.db",
                steps=steps,
                seed=seed,
                on_step=partial(progress.advance, tasks[name]),
            )
    return outcomes


def recommended(path: Path) -> str:
    """The norm clipping that a run's record recommends; 1.0 where it is too short for that.

    Args:
        path: the run file.

    Returns:
        A spec.
    """
    try:
        return f"norm:{calibrate(path).threshold}"
    except CalibrationError:
        return "norm:1.0"


def arithmetic(radius: float, length: int) -> list[str]:
    """Why it explodes, in figures.

    Args:
        radius: spectral radius of the recurrent matrix at the start.
        length: how often a gradient goes through it.

    Returns:
        Sentences for the terminal and the report.

    Example:
        >>> arithmetic(1.1, 64)[1]
        '1.1 to the power 64 is 445, to the power 100 it is 13,780.'
    """
    return [
        "On its way back a gradient is multiplied by one matrix at every pixel; here that matrix "
        f"starts with a spectral radius of {radius:g}.",
        f"{radius:g} to the power {length} is {math.floor(radius**length):,}, "
        f"to the power 100 it is {math.floor(radius**100):,}.",
    ]
