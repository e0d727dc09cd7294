"""SG405: clipping after the step: the weights have moved already."""

from __future__ import annotations

from collections.abc import Iterator

from steadygrad.rules.base import Rule, finding
from steadygrad.rules.evidence.clips import (
    MOST,
    at,
    before_first_backward,
    calls,
    gradientless,
    share,
    unfilled,
)
from steadygrad.rules.evidence.placed import fixes
from steadygrad.rules.evidence.view import View
from steadygrad.rules.evidence.wording import percent
from steadygrad.rules.finding import Finding


def check(view: View) -> Iterator[Finding]:
    clip_calls = [call for call in calls(view) if not gradientless(call)]
    rate = share(clip_calls, unfilled)
    if rate < MOST or before_first_backward(view, clip_calls):
        return
    yield finding(
        view,
        "SG405",
        "error",
        0.95,
        "Gradients are clipped after optimizer.step(): the unclipped ones have been applied.",
        evidence=[
            f"{percent(rate)} of the {len(clip_calls)} clip calls see gradients that a step has "
            "already used.",
        ],
        steps=at(clip_calls, unfilled),
        tensors=[],
        causes=[
            "the clip call stands below optimizer.step()",
            "a callback that fires at the end of the step, where one before it was meant",
        ],
        fixes=fixes(view, clip_calls[-1]),
        figures={"share": rate},
    )


RULE = Rule("SG405", "clipping after the step", check, supersedes=("SG401", "SG402", "SG408"))
