"""SG409: clipping the same gradients twice."""

from __future__ import annotations

from collections.abc import Iterator

from steadygrad.rules.base import Rule, finding
from steadygrad.rules.evidence.clips import MOST, Call, before_policy, by_step, calls, figure
from steadygrad.rules.evidence.placed import fixes
from steadygrad.rules.evidence.view import View
from steadygrad.rules.evidence.wording import number, percent
from steadygrad.rules.finding import Finding
from steadygrad.text import printable


def _twice(group: list[Call]) -> bool:
    """Whether two calls of a step, with no backward between them, overlap."""
    last = max(figure(c, "renewals", 0) for c in group)
    group = [
        c for c in group if figure(c, "renewals", 0) == last
    ]  # SAM's others are other gradients
    whole = max(figure(c, "of_params", 0) for c in group)
    same = len({figure(c, "backward_since_step", 1) for c in group}) == 1
    overlap = sum(figure(c, "params", 0) for c in group) > whole > 0
    again = any(c.get("repeated") and not figure(c, "backward_since_clip", 0) for c in group)
    return again or (len(group) > 1 and same and overlap)


def check(view: View) -> Iterator[Finding]:
    beside = before_policy(view)
    if beside:
        yield _beside_a_policy(view, beside)
    groups = by_step(calls(view))
    faulty = [step for step, group in groups.items() if _twice(group)]
    if not faulty or len(faulty) < MOST * len(groups):
        return
    group = groups[faulty[0]]
    limits = ", ".join(number(figure(c, "max_norm")) for c in group)
    acted = any(figure(c, "coef", 1) < 1 for step in faulty for c in groups[step])
    yield finding(
        view,
        "SG409",
        "warning",
        0.9 if acted else 0.8,
        f"The same gradients are clipped {max(2, len(group))} times a step.",
        evidence=[
            f"In {percent(len(faulty) / len(groups))} of the steps; the thresholds are {limits}.",
            "The lowest threshold decides; a logged norm of the later call is the clipped one.",
        ],
        steps=faulty[:50],
        tensors=[],
        causes=[
            "a trainer or an integration clips already, and the script clips again",
            "clipping by value and by norm were combined",
        ],
        fixes=fixes(view, min(group, key=lambda c: figure(c, "max_norm"))),
        figures={"calls": len(group)},
    )


def _beside_a_policy(view: View, clip_calls: list[Call]) -> Finding:
    """The script's own calls clip what an attached policy clips after them."""
    last = clip_calls[-1]
    steps = sorted({int(call["step"]) for call in clip_calls})
    return finding(
        view,
        "SG409",
        "warning",
        0.95,
        "Gradients are clipped twice: by the script's own calls, then by "
        f"{printable(str(last['policy']))}, which was attached.",
        evidence=[
            f"{len(steps)} of the steps whose calls are on record were clipped before the policy "
            f"saw them, at {number(figure(last, 'max_norm'))}.",
            "Norms and coefficients on record are of what those calls left.",
        ],
        steps=steps[:50],
        tensors=[],
        causes=["the script's clip call was left in when attach was added"],
        fixes=fixes(view, last)[:1],
        figures={"calls": 2},
    )


RULE = Rule("SG409", "clipping twice", check)
