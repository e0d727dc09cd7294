"""`steadygrad watch`: a run live in a terminal."""

from __future__ import annotations

import click


@click.command()
@click.argument("run", type=click.Path(dir_okay=False))
@click.option("--once", is_flag=True, help="Print one frame and end; for scripts and logs.")
def command(run: str, once: bool) -> None:
    """Show RUN, a run that is being recorded, live: norms, loss, clipping, tensors, findings.

    Keys: n and p page through the tensors, q quits.
    """
    from steadygrad.watch import watch

    # Ctrl-C is how one leaves a view where no keys can be read
    try:
        watch(run, once=once)
    except KeyboardInterrupt:
        return
