"""SG102: a NaN or inf at the end of an explosion."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from steadygrad.robust import median
from steadygrad.rules.advice import clip_code, hold_norm, keep_size, lower_lr
from steadygrad.rules.base import Rule, finding
from steadygrad.rules.evidence import origins
from steadygrad.rules.evidence.breaks import FEW, GROWTH, Break, first_break, tell
from steadygrad.rules.evidence.loop import first_pace
from steadygrad.rules.evidence.view import View
from steadygrad.rules.evidence.wording import number, times
from steadygrad.rules.finding import Finding

_CAUSES = (
    "the learning rate is too high: each step makes the next gradient larger",
    "a recurrent matrix or a deep stack multiplies gradients at every time step or layer",
    "initial weights too large, or no normalisation",
)


def _title(story: Break) -> str:
    if story.huge:
        return (
            f"Gradients are huge from the start, a norm of {number(float(story.before.max()))}, "
            f"and turn non-finite at step {story.step}."
        )
    return (
        f"Gradients exploded: {times(story.growth)} the ordinary size just before they "
        f"turned non-finite at step {story.step}."
    )


def _departure(view: View, story: Break) -> int:
    """The step from which norms never came back: what stands before it is ordinary."""
    norms = np.where(view.usable, view.norm, np.nan)[: story.index]
    near = np.flatnonzero(norms <= GROWTH * median(norms[:3]))
    return int(near[-1]) + 1 if near.size else 1


def _fixes(view: View, story: Break) -> list[str]:
    if story.huge:
        return [keep_size(view), clip_code(view, "norm:1.0"), lower_lr(view)]
    since = _departure(view, story)
    if since < FEW and math.isfinite(first_pace(view)):  # no norm before was that of a training
        return [lower_lr(view), clip_code(view, "norm:1.0")]
    return hold_norm(view, lower_lr(view), until=since)


def check(view: View) -> Iterator[Finding]:
    story = first_break(view)
    if story is None or not story.exploded:
        return
    yield finding(
        view,
        "SG102",
        "error",
        0.92,
        _title(story),
        evidence=[*tell(view, story), *origins.sentences(view)],
        steps=[*range(max(0, story.step - 5), story.step), story.step],
        tensors=story.tensors[:8],
        causes=_CAUSES[1:] if story.huge else _CAUSES,
        fixes=_fixes(view, story),
        figures={"growth_before": story.growth, "share": story.share},
    )


RULE = Rule(
    "SG102", "an explosion that ended in NaN or inf", check, supersedes=("SG104", "SG201", "SG202")
)
