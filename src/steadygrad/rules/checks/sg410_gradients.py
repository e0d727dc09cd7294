"""SG410: gradients handed to the clip call in place of parameters."""

from __future__ import annotations

from collections.abc import Iterator

from steadygrad.rules.base import Rule, finding
from steadygrad.rules.evidence.clips import MOST, Call, by_step, calls, figure, gradientless
from steadygrad.rules.evidence.placed import fixes
from steadygrad.rules.evidence.view import View
from steadygrad.rules.finding import Finding


def _empty(call: Call) -> bool:
    """No parameter was given, or none of them had a gradient although a backward had run."""
    ran = figure(call, "backward_since_step", 1) > 0 and not call.get("after_step")
    return gradientless(call) or (ran and figure(call, "params", 1) == 0)


def _struck(group: list[Call]) -> bool:
    """Whether a step's calls did nothing: one for a frozen part, beside others, is no fault."""
    return all(map(_empty, group)) or any(call.get("on_gradients") for call in group)


def _count(view: View) -> int:
    """How often such a call was made: events of calls that no step claims are sampled."""
    summed = view.info.get("clip_calls") or ()
    kinds = (k for k in summed if k.get("no_gradients") and not k.get("after_step"))
    return sum(int(kind.get("count", 0)) for kind in kinds)


def check(view: View) -> Iterator[Finding]:
    groups = by_step(calls(view))
    struck = sorted(step for step, group in groups.items() if _struck(group))
    if not struck or len(struck) < MOST * len(groups):
        return
    empty = [call for step in struck for call in groups[step] if _empty(call)]
    yield finding(
        view,
        "SG410",
        "error",
        0.94,
        "The clip call is given something that has no gradients: it does nothing, silently.",
        evidence=[
            f"{max(len(empty), _count(view))} clip calls in {len(view)} steps found no parameter "
            "with a gradient, although backward() had run; they return a norm of 0.",
        ],
        steps=struck[:50],
        tensors=[],
        causes=[
            "the gradients were passed: [p.grad for p in model.parameters()]",
            "a generator that was used up by an earlier call: params = model.parameters()",
            "the parameters of another model, or of a copy",
        ],
        fixes=fixes(view, empty[-1]),
        figures={"share": len(struck) / len(groups)},
    )


RULE = Rule(
    "SG410",
    "gradients in place of parameters",
    check,
    supersedes=("SG401", "SG402", "SG408"),
)
