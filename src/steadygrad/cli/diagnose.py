"""`steadygrad diagnose RUN.db`."""

from __future__ import annotations

import click

from steadygrad.cli._arguments import run_file


@click.command()
@run_file
@click.option("--json", "as_json", is_flag=True, help="Print the findings as a JSON list.")
@click.option(
    "--fail-on",
    type=click.Choice(["error", "warning"]),
    help="Exit with 1 where a finding is that grave, for use in CI.",
)
def command(run: str, as_json: bool, fail_on: str | None) -> None:
    """Explain a recorded run: what is wrong with it, the gravest first.

    Without RUN.db: the newest run in this folder.

    Exits with 0, with 1 where --fail-on applies, with 2 for a file that cannot be read, and
    with 3 where --fail-on is given and the run has too few steps to be judged.
    """
    from steadygrad.errors import RunFileError
    from steadygrad.rules.show import show
    from steadygrad.text import printable

    try:
        status = show(run, as_json=as_json, fail_on=fail_on)
    except RunFileError as error:
        raise click.UsageError(printable(str(error))) from error
    raise SystemExit(status)
