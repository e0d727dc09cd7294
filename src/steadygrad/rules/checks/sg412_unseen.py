"""SG412: norms on record that are those after a clip, which was not seen."""

from __future__ import annotations

from collections.abc import Iterator

from steadygrad.calibration.unseen import unseen_clip
from steadygrad.rules.advice import clip_code
from steadygrad.rules.base import Rule, finding
from steadygrad.rules.evidence.view import View
from steadygrad.rules.evidence.wording import number
from steadygrad.rules.finding import Finding


def check(view: View) -> Iterator[Finding]:
    clip = unseen_clip(view.run, view.optimizer)
    if clip is None:
        return
    spec = f"{'value' if clip.by_value else 'norm'}:{clip.level:.3g}"
    yield finding(
        view,
        "SG412",
        "info",
        0.9,
        f"Gradients are clipped out of sight, at {number(clip.level)}: norms on record are those "
        "after it.",
        evidence=[
            f"{clip.sentence}, to the last digits, while single tensors differ.",
            "No clip call and no policy is on record; what the gradients were before is not known.",
        ],
        steps=list(clip.steps),
        tensors=[],
        causes=[
            "gradients are scaled or clamped by hand: p.grad.mul_(c), p.grad.data.clamp_(-1, 1)",
            "a library clips by itself, before the optimizer is called",
        ],
        fixes=[clip_code(view, spec) + "  # in place of the script's own"],
        figures={"level": clip.level, "share": clip.share},
    )


RULE = Rule("SG412", "a clip out of sight", check)
