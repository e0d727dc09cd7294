"""What several subcommands take: the run files that they read."""

from __future__ import annotations

import click


def newest_unless_named(
    context: click.Context, parameter: click.Parameter, value: str | tuple[str, ...] | None
) -> str | tuple[str, ...]:
    """A click callback: what was typed, or else the newest run of this folder, said aloud.

    Raises:
        click.UsageError: nothing was typed, and there is no run here.
    """
    if value:
        return value
    from steadygrad.errors import RunFileError
    from steadygrad.runlog.newest import newest_run
    from steadygrad.text import printable

    try:
        path = str(newest_run())
    except RunFileError as error:
        raise click.UsageError(str(error)) from error
    click.echo(printable(f"steadygrad: reading {path}, the newest run here"), err=True)
    return (path,) if parameter.nargs == -1 else path


run_file = click.argument(
    "run",
    metavar="[RUN.db]",
    required=False,
    type=click.Path(dir_okay=False),
    callback=newest_unless_named,
)
