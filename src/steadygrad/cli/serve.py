"""`steadygrad serve`: the runs of a folder, live, in a browser."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.argument(
    "folder", default=".", type=click.Path(exists=True, file_okay=False), metavar="[FOLDER]"
)
@click.option(
    "--host",
    default="127.0.0.1",
    show_default=True,
    help="Where to listen; beyond this machine the page needs the token that is printed.",
)
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=8765,
    show_default=True,
    help="The port; 0 for a free one.",
)
def command(folder: str, host: str, port: int) -> None:
    """Show the run files in FOLDER in a browser, live: a list, and each run as its report.

    Without FOLDER: this folder. Nothing is written; Ctrl-C ends it.
    """
    from steadygrad.errors import needed_for

    with needed_for("steadygrad serve", "serve", "starlette and uvicorn"):
        import starlette  # noqa: F401
        import uvicorn  # noqa: F401
    from steadygrad.serve.serving import serve

    serve(Path(folder), host, port)
