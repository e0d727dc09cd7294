"""Put verdicts together: the tables of docs/diagnosis.md, which stand there between markers."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

import numpy as np
from judge import Verdict
from others import OTHERS


def sections(verdicts: list[Verdict], seconds: float, processes: int) -> dict[str, str]:
    """What the page shows, by the name of its marker.

    Args:
        verdicts: of all cases that ran.
        seconds: that they took.
        processes: that took part.

    Returns:
        Marker -> Markdown.
    """
    broken = sum(bool(v.case.accepted) for v in verdicts)
    held = sum(v.case.held_out for v in verdicts)
    summary = (
        f"{len(verdicts)} runs: {broken} broken, {len(verdicts) - broken} healthy, {held} of them "
        f"held out; {seconds:.0f} s in {processes} process{'es' * (processes > 1)}."
    )
    scored = [v for v in verdicts if v.scores]
    if scored:
        learned = share(not v.idle for v in scored)
        summary += f" Of the healthy ones {learned} learn: measured before and after."
    odd = wrong(verdicts)
    listed = "\n".join(["Missed, answered second or accused falsely, all of it:", "", *odd])
    return {
        "summary": f"{summary}\n\n{table(verdicts)}\n\n{listed if odd else 'Nothing was missed.'}",
        "faults": confusion(verdicts),
    }


def written(page: str, parts: dict[str, str]) -> str:
    """The page with the text between its markers replaced.

    Example:
        >>> written("a <!-- corpus: x -->old<!-- end --> b", {"x": "new"})
        'a <!-- corpus: x -->\\n\\nnew\\n\\n<!-- end --> b'
    """
    for name, text in parts.items():
        pattern = rf"(<!-- corpus: {name} -->).*?(<!-- end -->)"
        page, count = re.subn(
            pattern, lambda m, text=text: f"{m[1]}\n\n{text}\n\n{m[2]}", page, flags=re.DOTALL
        )
        if count != 1:
            raise SystemExit(f"the page has {count} places marked <!-- corpus: {name} -->, not one")
    return page


def share(flags: Iterable[bool]) -> str:
    """A share with its counts.

    Example:
        >>> share([True, False])
        '1/2 (50.0 %)'
    """
    values = list(flags)
    return f"{sum(values)}/{len(values)} ({100 * np.mean(values):.1f} %)" if values else "-"


def table(verdicts: list[Verdict]) -> str:
    """The summary in Markdown: held-out part, tuning part, and the other detectors."""
    parts = {
        "held out": [v for v in verdicts if v.case.held_out],
        "tuned on": [v for v in verdicts if not v.case.held_out],
    }
    lines = [
        "| detector | part | faults detected | accepted id first | false alarms |",
        "|---|---|---|---|---|",
    ]
    for part, some in parts.items():
        broken = [v for v in some if v.case.accepted]
        sound = [v for v in some if not v.case.accepted]
        lines.append(
            f"| **steadygrad** | {part} | {share(v.detected for v in broken)} | "
            f"{share(v.first for v in broken)} | {share(v.alarmed for v in sound)} |"
        )
    for name in OTHERS:
        broken = [v for v in parts["held out"] if v.case.accepted]
        sound = [v for v in parts["held out"] if not v.case.accepted]
        lines.append(
            f"| {name}, restated | held out | {share(v.others[name][0] for v in broken)} "
            f"(any alarm) | {share(v.others[name][1] for v in broken)} (right family) | "
            f"{share(v.others[name][0] for v in sound)} |"
        )
    return "\n".join(lines)


def confusion(verdicts: list[Verdict]) -> str:
    """One row a fault: what was said first, and how often."""
    lines = [
        "| fault | accepted | cases | detected | first | first answers |",
        "|---|---|---|---|---|---|",
    ]
    names = dict.fromkeys(v.case.name for v in verdicts if v.case.accepted)
    for name in names:
        some = [v for v in verdicts if v.case.name == name and v.case.accepted]
        said = Counter(v.ids[0] if v.ids else "nothing" for v in some)
        answers = ", ".join(f"{i} {n}" for i, n in said.most_common())
        lines.append(
            f"| {name} | {' '.join(some[0].case.accepted)} | {len(some)} | "
            f"{sum(v.detected for v in some)} | {sum(v.first for v in some)} | {answers} |"
        )
    for name in dict.fromkeys(v.case.name for v in verdicts if not v.case.accepted):
        some = [v for v in verdicts if v.case.name == name and not v.case.accepted]
        said = Counter(i for v in some for i in v.ids)
        answers = ", ".join(f"{i} {n}" for i, n in said.most_common()) or "nothing"
        lines.append(f"| healthy: {name} | | {len(some)} | | | {answers} |")
    return "\n".join(lines)


def wrong(verdicts: list[Verdict]) -> list[str]:
    """Cases missed, answered second or accused falsely, and healthy ones that learn nothing."""
    odd = [v for v in verdicts if (not v.first if v.case.accepted else v.alarmed or v.idle)]
    return [
        f"- `{v.case}`: accepted {' '.join(v.case.accepted) or 'nothing'}, "
        f"said {' '.join(v.ids) or 'nothing'}{', and learns nothing' if v.idle else ''}"
        for v in odd
    ]
