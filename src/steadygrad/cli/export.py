"""`steadygrad export`: a recorded run in a format that other programs read."""

from __future__ import annotations

import click

from steadygrad.sinks.names import formats


@click.command()
@click.argument("run", type=click.Path(dir_okay=False))
@click.option("--to", type=click.Choice(formats()), required=True, help="The format.")
@click.option(
    "-o",
    "--out",
    metavar="OUT",
    help="File, folder, project or address to write to; by default beside RUN, under its name.",
)
@click.option("--tensors", is_flag=True, help="With the figures of every tensor at every step.")
def command(run: str, to: str, out: str | None, tensors: bool) -> None:
    """Write RUN, a recorded run, in another format."""
    from steadygrad.rules import stability
    from steadygrad.runlog import open_run
    from steadygrad.sinks import export
    from steadygrad.text import printable

    opened = open_run(run)
    click.echo(printable(export(opened, to, out, tensors=1 if tensors else None)))
    unstable = stability(opened)
    if unstable.score == unstable.score:
        click.echo(f"unstable steps: {unstable.score:.2%} of {unstable.steps:,}", err=True)
