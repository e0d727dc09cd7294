"""SG709: clipped gradients that are thrown away."""

from __future__ import annotations

from collections.abc import Iterator

from steadygrad.rules.base import Rule, finding
from steadygrad.rules.evidence.clips import MOST, Call, at, calls, figure, share
from steadygrad.rules.evidence.placed import fixes
from steadygrad.rules.evidence.view import View
from steadygrad.rules.evidence.wording import number, percent
from steadygrad.rules.finding import Finding


def _discarded(call: Call) -> bool:
    return bool(call.get("discarded"))


def check(view: View) -> Iterator[Finding]:
    made = calls(view)
    rate = share(made, _discarded)
    if rate < MOST:
        return
    call = next(each for each in made if _discarded(each))
    yield finding(
        view,
        "SG709",
        "error",
        0.94,
        "What the clip call returns is thrown away: nothing is clipped.",
        evidence=[
            f"In {percent(rate)} of the {len(made)} clip calls "
            f"({call.get('call', 'the clip')}, threshold {number(figure(call, 'max_norm'))}) the "
            "step was given the gradients as they were before the call.",
        ],
        steps=at(made, _discarded),
        tensors=[],
        causes=[
            "the call returns new tensors and changes none; its result is not used",
            "the result has a name of its own, and the old name is applied",
        ],
        fixes=fixes(view, call),
        figures={"share": rate},
    )


RULE = Rule("SG709", "clipped gradients thrown away", check, supersedes=("SG402", "SG403"))
