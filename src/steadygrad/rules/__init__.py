"""Diagnoses: one file a rule, found by being here; records in, findings out."""

from __future__ import annotations

import importlib
import importlib.resources
import os
import pkgutil
from dataclasses import replace

from steadygrad.errors import UsageError
from steadygrad.rules import checks
from steadygrad.rules.base import Rule
from steadygrad.rules.evidence.source import with_places
from steadygrad.rules.evidence.stability import Stability, stability
from steadygrad.rules.evidence.view import View
from steadygrad.rules.finding import SEVERITIES, Finding, Findings
from steadygrad.runlog import Run, as_run

__all__ = [
    "NOTHING",
    "REGISTRY",
    "SEVERITIES",
    "Finding",
    "Findings",
    "Rule",
    "Stability",
    "diagnose",
    "page",
    "stability",
]


def _discover() -> dict[str, Rule]:
    names = sorted(module.name for module in pkgutil.iter_modules(checks.__path__))
    rules = [importlib.import_module(f"{checks.__name__}.{name}").RULE for name in names]
    return {rule.id: rule for rule in rules}


REGISTRY: dict[str, Rule] = _discover()
"""Id -> rule, ascending."""
BREAKS = ("SG101", "SG102", "SG105")
"""The rules on a break whose cause may lie with another optimizer."""
NAMES_CAUSE = "SG105"
"""The one of them that names a cause: of master weights and their copies it is the one to hear."""
NOTHING = "SG000"
"""The rule that speaks where there is nothing to judge."""
RECOVERED = "SG206"
"""The rule that speaks of steps that were taken back, even where no other is left."""


def diagnose(run: Run | str | os.PathLike[str]) -> Findings:
    """Explain a run: what is wrong with it, the gravest first; an empty list is good news.

    Args:
        run: an open run, or the path of a run file.

    Returns:
        The findings. A rule that has too few steps to judge stays silent; a run of too few steps
        for any of them, in which none found a fault, gives the one finding `NOTHING`.

    Raises:
        RunFileError: the path is no run file.

    Example:
        >>> import numpy as np
        >>> from steadygrad.runlog import Run
        >>> norms = [1.0, 1.1, 0.9, 1.0, float("nan")]
        >>> run = Run.from_arrays(steps={"norm": norms, "nonfinite": [0, 0, 0, 0, 3]})
        >>> diagnose(run)[0].id
        'SG101'
    """
    opened = as_run(run)
    findings: list[Finding] = []
    if not len(opened):
        return Findings(REGISTRY[NOTHING].check(View(opened, 0)))
    for optimizer in opened.parts:
        view = View(opened, optimizer)
        findings += _explain(view)
    ordered = [f for f in _in_order(opened, findings) if f.id != NOTHING]
    graded = sorted(with_places(ordered, opened), key=lambda f: f.gravity)
    return Findings(graded or findings)


def _in_order(run: Run, findings: list[Finding]) -> list[Finding]:
    """Let the optimizer whose gradients broke first explain the others' breaks.

    Each counts its own steps, so it is by their place in the file that steps are ordered.
    """
    views = [View(run, number) for number in {f.optimizer for f in findings}]
    at = {view.optimizer: view.rows[view.broken] for view in views}
    breaks = [
        f for f in findings if f.id in BREAKS and f.severity != "info" and len(at[f.optimizer])
    ]
    if len({f.optimizer for f in breaks}) < 2:
        return findings
    round_ = len(run.parts)  # rows in which every optimizer has its turn
    first = min(breaks, key=lambda f: int(at[f.optimizer][0]) - round_ * (f.id == NAMES_CAUSE))
    return [
        _later(f, first.optimizer) if f in breaks and f.optimizer != first.optimizer else f
        for f in findings
    ]


def _later(finding: Finding, first: int) -> Finding:
    said = f"Optimizer {first}'s gradients broke before; what it broke is the likely cause here."
    return replace(finding, severity="info", evidence=(said, *finding.evidence))


def _explain(view: View) -> list[Finding]:
    seen = REGISTRY if len(view) else (NOTHING, RECOVERED)
    findings = [f for name in seen for f in REGISTRY[name].check(view)]
    silenced = {
        other
        for f in findings
        if f.severity != "info"
        for other in REGISTRY[f.id].supersedes
        if other != f.id
    }
    return [f for f in findings if f.id not in silenced]


def page(rule_id: str) -> str:
    """The page of one rule, in Markdown: what it is, its neighbours, the evidence, the fix.

    Args:
        rule_id: e.g. ``"SG101"``; letter case does not matter.

    Returns:
        The text.

    Raises:
        UsageError: there is no such rule; the message lists them.

    Example:
        >>> page("sg101").splitlines()[0]
        '# SG101: a NaN or inf made by an operation'
    """
    upper_id = rule_id.upper()
    if upper_id not in REGISTRY:
        raise UsageError(f"there is no rule {rule_id!r}; there are: {', '.join(REGISTRY)}")
    text = importlib.resources.files(__name__).joinpath("pages", f"{upper_id}.md")
    return text.read_text(encoding="utf-8")
