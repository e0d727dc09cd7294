"""`steadygrad compare`: one script under several clipping policies and seeds."""

from __future__ import annotations

from pathlib import Path

import click

DEFAULTS = ("none", "norm:1.0", "auto")


@click.command(context_settings={"allow_interspersed_args": False})
@click.option(
    "--clip",
    "specs",
    multiple=True,
    metavar="SPEC",
    help="A policy to compare; give it several times. 'script' means the script's own clip calls. "
    f"Default: {' '.join(DEFAULTS)}.",
)
@click.option("--seeds", default=3, show_default=True, help="Trainings of each policy.")
@click.option("--jobs", default=0, metavar="N", help="Trainings at a time; default: one a core.")
@click.option(
    "--engine",
    default="local",
    show_default=True,
    metavar="local|ray[:ADDRESS]",
    help="Where to train: on this machine or on a Ray cluster.",
)
@click.option(
    "--out",
    type=click.Path(file_okay=False),
    metavar="FOLDER",
    help="Where results go; finished trainings in it are reused. Default: compare-SCRIPT.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON in place of the table.")
@click.option("-m", "as_module", is_flag=True, help="SCRIPT is a module, as after python -m.")
@click.argument("script")
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def command(
    specs: tuple[str, ...],
    seeds: int,
    jobs: int,
    engine: str,
    out: str | None,
    as_json: bool,
    as_module: bool,
    script: str,
    arguments: tuple[str, ...],
) -> None:
    """Train SCRIPT with its ARGUMENTS under every policy and seed, and compare.

    Seeds are set from outside: they shift whatever the script seeds. A winner is named
    only where the difference exceeds the seeds' spread. Starting again goes on where it
    stopped.
    """
    from steadygrad.compare.cells import Grid
    from steadygrad.compare.show import compare

    name = script.rpartition(".")[2] if as_module else Path(script).stem
    folder = Path(out or f"compare-{name}").absolute()
    grid = Grid(script, arguments, specs or DEFAULTS, seeds, folder, as_module)
    compare(grid, jobs=jobs, engine=engine, as_json=as_json)
