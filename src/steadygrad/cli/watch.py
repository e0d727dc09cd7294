"""`steadygrad watch`: a run live in a terminal."""

from __future__ import annotations

import click

from steadygrad.cli._arguments import run_file


@click.command()
@run_file
@click.option("--once", is_flag=True, help="Print one frame and end; for scripts and logs.")
def command(run: str, once: bool) -> None:
    """Show RUN.db, a run that is being recorded, live: norms, loss, clipping, tensors, findings.

    Without RUN.db: the newest run in this folder.

    Keys: n and p page through the tensors, q quits.
    """
    from steadygrad.watch import watch

    # Ctrl-C is how one leaves a view where no keys can be read
    try:
        watch(run, once=once)
    except KeyboardInterrupt:
        return
