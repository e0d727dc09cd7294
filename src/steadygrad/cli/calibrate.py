"""`steadygrad calibrate`: a threshold from a recorded run, with its evidence."""

from __future__ import annotations

import click

from steadygrad.cli._arguments import run_file


@click.command()
@run_file
@click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output.")
@click.option("--optimizer", type=int, help="Which optimizer; by default the one with most steps.")
@click.option(
    "--replay",
    "specs",
    multiple=True,
    metavar="SPEC",
    help="Also say what this policy would have done to the run; may be given again.",
)
def command(run: str, as_json: bool, optimizer: int | None, specs: tuple[str, ...]) -> None:
    """Recommend a clipping threshold from RUN.db, a file that `steadygrad run` recorded.

    Without RUN.db: the newest run in this folder.
    """
    from steadygrad.calibration.show import show

    click.echo(show(run, optimizer=optimizer, replays=specs, as_json=as_json))
