"""SG404: clipping before backward: there is nothing there yet, or last step's gradients."""

from __future__ import annotations

from collections.abc import Iterator

from steadygrad.rules.base import Rule, finding
from steadygrad.rules.evidence.clips import (
    MOST,
    Call,
    at,
    before_first_backward,
    calls,
    figure,
    gradientless,
    share,
    unfilled,
    used_up,
)
from steadygrad.rules.evidence.placed import fixes
from steadygrad.rules.evidence.view import View
from steadygrad.rules.evidence.wording import percent
from steadygrad.rules.finding import Finding


def check(view: View) -> Iterator[Finding]:
    clip_calls = [call for call in calls(view) if not gradientless(call)]
    old = used_up(view, clip_calls)

    def early(call: Call) -> bool:
        return unfilled(call) or id(call) in old

    rate = share(clip_calls, early)
    if rate < MOST or not before_first_backward(view, clip_calls):
        return
    empty = share([c for c in clip_calls if early(c)], lambda c: figure(c, "params", 0) == 0)
    yield finding(
        view,
        "SG404",
        "error",
        0.95,
        "Gradients are clipped before backward(): the clip sees "
        + ("no gradients." if empty > 0.5 else "none, or those of the step before."),
        evidence=[
            f"{percent(rate)} of the {len(clip_calls)} clip calls come after the last step and "
            "before the next backward()" + (" of these parameters." if old else "."),
            "The gradients that the optimizer applies are never clipped.",
        ],
        steps=at(clip_calls, early),
        tensors=[],
        causes=["the clip call stands above loss.backward()"],
        fixes=fixes(view, clip_calls[-1]),
        figures={"share": rate},
    )


RULE = Rule(
    "SG404", "clipping before backward", check, supersedes=("SG401", "SG402", "SG408", "SG409")
)
