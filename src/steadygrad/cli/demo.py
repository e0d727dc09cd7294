"""`steadygrad demo`: an RNN that explodes, and the same one kept steady."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.option(
    "-o",
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("demo-out"),
    show_default=True,
    help="Folder for the run files and the report; an earlier demo there is replaced.",
)
@click.option(
    "--steps",
    type=click.IntRange(min=40),
    default=700,
    show_default=True,
    help="Steps of each training.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of weights and batches.")
def command(out: Path, steps: int, seed: int) -> None:
    """Train an RNN that explodes, and the same one kept steady; end with a report.

    Takes about a minute on two cores. The last line printed is the report's path.
    """
    from steadygrad.demos.demo import demo

    demo(out, steps=steps, seed=seed)
