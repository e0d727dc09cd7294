"""`steadygrad explain [RULE]`."""

from __future__ import annotations

import click


@click.command()
@click.argument("rule", required=False)
def command(rule: str | None) -> None:
    """Print the page of a rule, or the list of all rules.

    A page says what the fault is, how it is told from its neighbours, the evidence and the fix.
    """
    from steadygrad.lint.explaining import explain

    click.echo(explain(rule))
