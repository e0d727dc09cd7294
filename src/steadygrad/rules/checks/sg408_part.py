"""SG408: clipping that leaves out part of what the optimizer moves."""

from __future__ import annotations

from collections.abc import Iterator

from steadygrad.robust import median
from steadygrad.rules.base import Rule, finding
from steadygrad.rules.evidence.clips import MOST, Call, by_step, calls, figure
from steadygrad.rules.evidence.placed import fixes
from steadygrad.rules.evidence.view import View
from steadygrad.rules.evidence.wording import number, percent
from steadygrad.rules.finding import Finding


def _covered(group: list[Call]) -> float:
    """Share of the parameters that the calls of a step reach together."""
    whole = max(figure(c, "of_params", 0) for c in group)
    reached = sum(figure(c, "params", 0) for c in group)
    return min(1.0, reached / whole) if whole else 1.0


def _partial(group: list[Call]) -> bool:
    return 0 < _covered(group) < 1


def check(view: View) -> Iterator[Finding]:
    groups = by_step(calls(view))
    faulty = [step for step, group in groups.items() if _partial(group)]
    if not faulty or len(faulty) < MOST * len(groups):
        return
    covered = median([_covered(groups[step]) for step in faulty])
    group = groups[faulty[-1]]
    last, reached = group[-1], sum(figure(c, "params", 0) for c in group)
    who = "The call reaches" if len(group) == 1 else f"The {len(group)} calls together reach"
    yield finding(
        view,
        "SG408",
        "error" if _suffers(view) else "warning",
        0.95,
        f"Only {percent(covered)} of the optimizer's parameters are clipped.",
        evidence=[
            f"{who} {number(reached)} of "
            f"{number(figure(last, 'of_params', 0))} parameters with a gradient; the others are "
            "applied as they come.",
        ],
        steps=faulty[:50],
        tensors=[],
        causes=[
            "the call is given one sub-module's parameters",
            "a head or an embedding was added to the optimizer and not to the clip call",
        ],
        fixes=fixes(view, last),
        figures={"covered": covered},
    )


def _suffers(view: View) -> bool:
    """Whether something went wrong that whole clipping is there to prevent."""
    trend = view.loss_trend
    return bool(view.broken.any() or len(view.spikes) or trend.diverged or trend.blew_up)


RULE = Rule("SG408", "clipping part of the parameters", check)
