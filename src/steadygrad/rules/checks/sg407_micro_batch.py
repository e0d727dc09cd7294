"""SG407: clipping after every micro-batch of an accumulated step."""

from __future__ import annotations

from collections.abc import Iterator

from steadygrad.robust import median
from steadygrad.rules.base import Rule, finding
from steadygrad.rules.evidence.clips import (
    MOST,
    Call,
    by_step,
    calls,
    figure,
    gradientless,
    used_up,
)
from steadygrad.rules.evidence.placed import fixes
from steadygrad.rules.evidence.view import View
from steadygrad.rules.evidence.wording import percent, times
from steadygrad.rules.finding import Finding

_ORDER = (
    "for micro_batch in batch:\n    (loss_fn(micro_batch) / len(batch)).backward()\n"
    "{clip}  # once, over the sum\noptimizer.step(); optimizer.zero_grad()"
)


def _each(group: list[Call]) -> bool:
    """Whether the calls of a step are parted by backward passes."""
    last = max(figure(c, "renewals", 0) for c in group)
    mine = [
        c for c in group if figure(c, "renewals", 0) == last
    ]  # SAM's others are other gradients
    return len({figure(c, "backward_since_step", 1) for c in mine}) > 1


def check(view: View) -> Iterator[Finding]:
    clip_calls = [call for call in calls(view) if not gradientless(call)]
    old = used_up(view, clip_calls)
    groups = by_step([call for call in clip_calls if id(call) not in old])
    faulty = [step for step, group in groups.items() if _each(group)]
    if not faulty or len(faulty) < MOST * len(groups):
        return
    often = median([len(groups[step]) for step in faulty])
    yield finding(
        view,
        "SG407",
        "error",
        0.94,
        f"Gradients are clipped {times(often)} a step, once per micro-batch.",
        evidence=[
            f"In {percent(len(faulty) / len(groups))} of the steps backward() runs between the "
            "clip calls.",
            "Each clip shrinks what the earlier micro-batches have added, so the last ones weigh "
            "most, and the sum may still exceed the threshold.",
        ],
        steps=faulty[:50],
        tensors=[],
        causes=["the clip call stands inside the accumulation loop"],
        fixes=fixes(view, groups[faulty[0]][-1], _ORDER),
        figures={"calls": often},
    )


RULE = Rule("SG407", "clipping once per micro-batch", check, supersedes=("SG401", "SG402", "SG409"))
