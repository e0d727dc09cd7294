"""Findings and rule pages as text and JSON, for the command line."""

from __future__ import annotations

import dataclasses
import json
import sys

from rich.console import Console
from rich.markup import escape
from rich.syntax import Syntax

from steadygrad.rules import NOTHING, REGISTRY, SEVERITIES, Finding, diagnose, page
from steadygrad.text import printable

_COLOURS = {"error": "bold red", "warning": "yellow", "info": "cyan"}
_LANGUAGE = "python"


GRAVE, UNJUDGED = 1, 3
"""Exit statuses: a finding is as grave as was asked; the run had nothing to judge."""


def show(path: str, *, as_json: bool = False, fail_on: str | None = None) -> int:
    """Print what `diagnose` finds in a run file on standard output.

    Args:
        path: the run file.
        as_json: print a JSON list instead of text.
        fail_on: ``error`` or ``warning``; None never fails.

    Returns:
        The exit status: `GRAVE` where a finding is at least as grave as ``fail_on``, `UNJUDGED`
        where ``fail_on`` is given and there was nothing to judge, else 0.

    Raises:
        RunFileError: the file cannot be read.
    """
    findings = diagnose(path)
    if as_json:
        print(json.dumps([f.to_dict() for f in findings], indent=2))
    else:
        print_findings(findings)
    if fail_on is None:
        return 0
    if [f.id for f in findings] == [NOTHING]:
        return UNJUDGED
    grave = SEVERITIES[: SEVERITIES.index(fail_on) + 1]
    return GRAVE if any(f.severity in grave for f in findings) else 0


def print_findings(findings: list[Finding], console: Console | None = None) -> None:
    """Print findings for people.

    Args:
        findings: as `diagnose` returns them.
        console: where to; standard output where None.
    """
    out = console or Console(file=sys.stdout)
    if not findings:
        out.print("[green]Nothing found.[/] Gradients, clipping and loss look sound in this run.")
    for finding in findings:
        shown = _printable(finding)
        colour = _COLOURS[shown.severity]
        out.print(
            f"[{colour}]{shown.severity} {shown.id}[/] {escape(shown.title)}", highlight=False
        )
        for sentence in shown.evidence:
            out.print(f"  {escape(sentence)}", highlight=False)
        out.print(
            f"  Likely cause: {escape(shown.causes[0])}." if shown.causes else "", highlight=False
        )
        for fix in shown.fixes[:1]:
            out.print(
                Syntax(fix, _LANGUAGE, background_color="default", word_wrap=True, padding=(0, 4))
            )
        out.print(f"  Confidence {shown.confidence:.0%}. More: {shown.explain}\n", highlight=False)


def _printable(finding: Finding) -> Finding:
    texts = ("title", "evidence", "causes", "fixes", "tensors")
    shown = {name: printable(getattr(finding, name)) for name in texts}
    return dataclasses.replace(finding, **shown)


def explain(rule: str | None = None) -> str:
    """The page of a rule, or one line a rule.

    Args:
        rule: its id, in any case; None for the list.

    Returns:
        The text, without a newline at its end.

    Raises:
        UsageError: there is no such rule.

    Example:
        >>> explain().splitlines()[1]
        'SG101  a NaN or inf made by an operation'
    """
    if rule is None:
        return "\n".join(f"{each.id}  {each.title}" for each in REGISTRY.values())
    return page(rule).rstrip()
