"""`steadygrad report`: one offline page, its JSON twin, or the same in the terminal."""

from __future__ import annotations

import click

from steadygrad.cli._arguments import newest_unless_named


@click.command()
@click.argument(
    "runs",
    nargs=-1,
    metavar="[RUN.db]...",
    type=click.Path(exists=True, dir_okay=False),
    callback=newest_unless_named,
)
@click.option(
    "-o", "--out", default="report.html", show_default=True, help="The HTML file to write."
)
@click.option("--terminal", is_flag=True, help="Show the report here and write no file.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON and write no file.")
@click.option("-f", "--force", is_flag=True, help="Replace a report that is already there.")
def command(runs: tuple[str, ...], out: str, terminal: bool, as_json: bool, force: bool) -> None:
    """Explain runs: verdict, threshold, curves, findings; several runs are compared.

    Without RUN.db: the newest run in this folder.

    Writes one HTML file that needs no network, and the same as JSON beside it;
    prints the path of the page.
    """
    from steadygrad.report.commands import report

    report(runs, out=out, terminal=terminal, as_json=as_json, force=force)
