"""SG410: gradients handed to the clip call in place of parameters."""

from __future__ import annotations

from collections.abc import Iterator

from steadygrad.rules.base import Rule, finding
from steadygrad.rules.clips import MOST, Call, at, calls, figure, share
from steadygrad.rules.finding import Finding
from steadygrad.rules.placed import fixes
from steadygrad.rules.view import View, percent


def _empty(call: Call) -> bool:
    """A backward has run, and yet the call found no parameter with a gradient."""
    ran = figure(call, "backward_since_step", 1) > 0 and not call.get("after_step")
    return ran and figure(call, "params", 1) == 0


def check(view: View) -> Iterator[Finding]:
    found = calls(view)
    rate = share(found, _empty)
    if rate < MOST:
        return
    yield finding(
        view,
        "SG410",
        "error",
        0.94,
        "The clip call is given something that has no gradients: it does nothing, silently.",
        evidence=[
            f"{percent(rate)} of the {len(found)} clip calls found no parameter with a gradient, "
            "although backward() had run; they return a norm of 0.",
        ],
        steps=at(found, _empty),
        tensors=[],
        causes=[
            "the gradients were passed: [p.grad for p in model.parameters()]",
            "a generator that was used up by an earlier call: params = model.parameters()",
            "the parameters of another model, or of a copy",
        ],
        fixes=fixes(view, found[-1]),
        figures={"share": rate},
    )


RULE = Rule(
    "SG410",
    "gradients in place of parameters",
    check,
    supersedes=("SG401", "SG402", "SG408"),
)
