"""SG102: a NaN or inf at the end of an explosion."""

from __future__ import annotations

from collections.abc import Iterator

from steadygrad.rules.advice import clip_code, lower_lr, recommended
from steadygrad.rules.base import Rule, finding
from steadygrad.rules.breaks import Break, first_break, tell
from steadygrad.rules.finding import Finding
from steadygrad.rules.view import View, number

_CAUSES = (
    "the learning rate is too high: each step makes the next gradient larger",
    "a recurrent matrix or a deep stack multiplies gradients at every time step or layer",
    "initial weights too large, or no normalisation",
)


def _title(story: Break) -> str:
    return (
        f"Gradients exploded: {number(story.growth)} times the ordinary size just before they "
        f"turned non-finite at step {story.step}."
    )


def check(view: View) -> Iterator[Finding]:
    story = first_break(view)
    if story is None or not story.exploded:
        return
    threshold = recommended(view, until=max(1, story.index - 5))
    yield finding(
        view,
        "SG102",
        "error",
        0.92,
        _title(story),
        evidence=tell(view, story),
        steps=[*range(max(0, story.step - 5), story.step), story.step],
        tensors=story.tensors[:8],
        causes=_CAUSES,
        fixes=[clip_code(view, f"norm:{threshold:g}"), lower_lr(view)],
        figures={"growth_before": story.growth, "share": story.share},
    )


RULE = Rule(
    "SG102", "an explosion that ended in NaN or inf", check, supersedes=("SG104", "SG201", "SG202")
)
