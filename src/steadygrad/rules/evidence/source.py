"""Where the source shows the same fault: what lint saw in the script, told beside a finding."""

from __future__ import annotations

from dataclasses import replace

from steadygrad import text
from steadygrad.rules.finding import Finding
from steadygrad.runlog import Run

MOST_PLACES = 3
"""Places named in one sentence."""


def with_places(findings: list[Finding], run: Run) -> list[Finding]:
    """Findings with the lines of the script that show the same fault.

    Args:
        findings: what the run shows.
        run: its ``info["lint"]`` holds what lint saw when the script had ended.

    Returns:
        The findings in their order; one that the source confirms has a sentence of evidence more.
    """
    noted = run.info.get("lint")
    places: dict[str, list[str]] = {}
    for place in noted if isinstance(noted, list) else []:
        if isinstance(place, dict):
            where = text.place(str(place.get("path")), place.get("line"))
            places.setdefault(str(place.get("id")), []).append(where)
    return [_confirmed(finding, places.get(finding.id, [])) for finding in findings]


def _confirmed(finding: Finding, places: list[str]) -> Finding:
    if not places:
        return finding
    sentence = f"The source shows it too: {', '.join(places[:MOST_PLACES])} (steadygrad lint)."
    first, rest = finding.evidence[:1], finding.evidence[1:]
    return replace(finding, evidence=(*first, sentence, *rest))
