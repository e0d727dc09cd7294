"""Diagnostics as text, JSON, SARIF and GitHub annotations."""

from __future__ import annotations

import json
from collections.abc import Callable

from steadygrad._version import __version__
from steadygrad.lint import CHECKS, Diagnostic, Report, Severity
from steadygrad.text import printable

_SARIF_LEVELS = {Severity.ERROR: "error", Severity.WARNING: "warning", Severity.INFO: "note"}
_GITHUB_LEVELS = {Severity.ERROR: "error", Severity.WARNING: "warning", Severity.INFO: "notice"}


def as_text(report: Report) -> str:
    """One line a diagnostic, and a last line that counts."""
    lines = [
        f"{printable(d.where)}: {d.severity.value} {d.id} {printable(d.message)}"
        + (" [--fix]" if d.fix else "")
        for d in report.diagnostics
    ]
    lines += [f"not linted: {printable(sentence)}" for sentence in report.unread]
    return "\n".join([*lines, _count(report)])


def _count(report: Report) -> str:
    severities = [d.severity for d in report.diagnostics]
    parts = [
        f"{n} {severity.value}{'s' if n > 1 and severity is not Severity.INFO else ''}"
        for severity in Severity
        if (n := severities.count(severity))
    ]
    files = f"{report.files} file{'' if report.files == 1 else 's'}"
    fixed = f" {report.fixed} fixed." if report.fixed else ""
    return f"{', '.join(parts) if parts else 'Nothing found'} in {files}.{fixed}"


def as_json(report: Report) -> str:
    """A JSON list of diagnostics."""
    return json.dumps([d.to_dict() for d in report.diagnostics], indent=2)


def as_github(report: Report) -> str:
    """Workflow commands that GitHub shows beside the lines of a pull request."""
    return "\n".join(_annotation(d) for d in report.diagnostics)


def _annotation(diagnostic: Diagnostic) -> str:
    level = _GITHUB_LEVELS[diagnostic.severity]
    place = (
        f"file={_escaped(diagnostic.path)},line={diagnostic.line},col={diagnostic.column},"
        f"endLine={diagnostic.end_line},title={diagnostic.id}"
    )
    return f"::{level} {place}::{_escaped(diagnostic.message, commas=False)}"


def _escaped(text: str, *, commas: bool = True) -> str:
    text = text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")
    return text.replace(":", "%3A").replace(",", "%2C") if commas else text


def as_sarif(report: Report) -> str:
    """A SARIF 2.1.0 log, which code scanning services read."""
    rules = [
        {"id": check.id, "name": check.title, "shortDescription": {"text": check.title}}
        for check in CHECKS.values()
    ]
    driver = {"name": "steadygrad", "version": __version__, "rules": rules}
    run = {"tool": {"driver": driver}, "results": [_result(d) for d in report.diagnostics]}
    schema = "https://json.schemastore.org/sarif-2.1.0.json"
    return json.dumps({"$schema": schema, "version": "2.1.0", "runs": [run]}, indent=2)


def _result(diagnostic: Diagnostic) -> dict[str, object]:
    region = {
        "startLine": diagnostic.line,
        "startColumn": diagnostic.column,
        "endLine": diagnostic.end_line,
        "endColumn": diagnostic.end_column,
    }
    artifact = {"uri": diagnostic.path.replace("\\", "/")}
    location = {"physicalLocation": {"artifactLocation": artifact, "region": region}}
    return {
        "ruleId": diagnostic.id,
        "level": _SARIF_LEVELS[diagnostic.severity],
        "message": {"text": diagnostic.message},
        "locations": [location],
    }


FORMATS: dict[str, Callable[[Report], str]] = {
    name.removeprefix("as_"): function
    for name, function in list(globals().items())
    if name.startswith("as_")
}
"""Name -> how a report is written."""
