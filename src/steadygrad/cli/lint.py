"""`steadygrad lint PATH...`."""

from __future__ import annotations

import click


def _words(
    _context: click.Context, _parameter: click.Parameter, value: tuple[str, ...]
) -> list[str]:
    return [word for part in value for word in part.split(",") if word]


@click.command()
@click.argument("paths", metavar="PATH...", nargs=-1, required=True, type=click.Path())
@click.option("--fix", is_flag=True, help="Mend what can be mended, in place.")
@click.option(
    "--format",
    "style",
    type=click.Choice(["text", "json", "sarif", "github"]),
    default="text",
    show_default=True,
    help="How to print what was found.",
)
@click.option("--select", multiple=True, callback=_words, help="Ids to look for, as SG4,SG606.")
@click.option("--ignore", multiple=True, callback=_words, help="Ids to leave out.")
@click.option("--exclude", multiple=True, help="Pattern of paths to leave out.")
@click.option(
    "--fail-on",
    type=click.Choice(["error", "warning", "info", "never"]),
    help="Exit with 1 where something is that grave.  [default: warning]",
)
def command(
    paths: tuple[str, ...],
    fix: bool,
    style: str,
    select: list[str],
    ignore: list[str],
    exclude: tuple[str, ...],
    fail_on: str | None,
) -> None:
    """Find mistakes around gradient clipping in Python files and notebooks, without running them.

    Reads [tool.steadygrad.lint] of the nearest pyproject.toml; `# noqa: SG405` silences a line.
    Exits with 0, with 1 where --fail-on applies, with 2 for a path that does not exist.
    """
    from pathlib import Path

    from steadygrad.errors import UsageError
    from steadygrad.lint import Severity, lint
    from steadygrad.lint.configuration import read_configuration
    from steadygrad.lint.show import FORMATS
    from steadygrad.text import printable

    project = read_configuration(Path.cwd())
    limit = fail_on or project.fail_on or "warning"
    if limit not in (*(s.value for s in Severity), "never"):
        raise UsageError(f"fail-on is error, warning, info or never; got {limit!r}")
    report = lint(
        *paths,
        select=select or project.select,
        ignore=[*ignore, *project.ignore],
        exclude=[*exclude, *project.exclude],
        fix=fix,
    )
    click.echo(FORMATS[style](report))
    for sentence in report.unread if style != "text" else ():
        click.echo(printable(f"not linted: {sentence}"), err=True)
    grave = limit != "never" and any(
        d.severity.rank <= Severity(limit).rank for d in report.diagnostics
    )
    raise SystemExit(int(grave))
