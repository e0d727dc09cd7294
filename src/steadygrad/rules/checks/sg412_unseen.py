"""SG412: norms on record that are those after a clip, which was not seen."""

from __future__ import annotations

import math
from collections.abc import Iterator

from steadygrad.calibration.unseen import unseen_clip
from steadygrad.robust import median
from steadygrad.rules.advice import clip_code, code
from steadygrad.rules.base import Rule, finding
from steadygrad.rules.evidence.loop import normalises
from steadygrad.rules.evidence.view import View
from steadygrad.rules.evidence.wording import number
from steadygrad.rules.finding import Finding

ALWAYS = 0.9
"""Share of the steps from which a clip is what makes all of them."""
MOSTLY = 0.7
"""Part of the norm that gradients would have with every element at the clamp."""


def check(view: View) -> Iterator[Finding]:
    clip = unseen_clip(view.run, view.optimizer)
    if clip is None:
        return
    stuck = view.loss_trend.stalled and not normalises(view)
    signs = clip.by_value and _signs_alone(view, clip.level)
    every = not clip.by_value and clip.share >= ALWAYS and stuck
    spec = f"{'value' if clip.by_value else 'norm'}:{clip.level:.3g}"
    yield finding(
        view,
        "SG412",
        "warning" if every or (signs and stuck) else "info",
        0.9,
        f"Gradients are clipped out of sight, at {number(clip.level)}: "
        + (
            "little but their signs is left."
            if signs
            else "every step is as long as that, and the loss stalls."
            if every
            else "norms on record are those after it."
        ),
        evidence=[
            f"{clip.sentence}, to the last digits, while single tensors differ.",
            "No clip call and no policy is on record; what the gradients were before is not known.",
        ],
        steps=list(clip.steps),
        tensors=[],
        causes=[
            f"gradients are scaled or clamped by hand: {_by_hand(view)}",
            "a library clips by itself, before the optimizer is called",
        ],
        fixes=[
            *(
                [clip_code(view, "norm:1.0") + "  # in place of the script's own"]
                * (signs or every)
            ),
            clip_code(view, spec) + "  # in place of the script's own",
        ],
        figures={"level": clip.level, "share": clip.share},
    )


def _signs_alone(view: View, level: float) -> bool:
    """Whether most elements end at the clamp, so that the norm is what all of them would give."""
    elements = sum(math.prod(tensor.shape) for tensor in view.tensors)
    return median(view.norm[view.usable]) > MOSTLY * level * math.sqrt(elements)


def _by_hand(view: View) -> str:
    return code(
        view,
        torch="p.grad.mul_(c), p.grad.data.clamp_(-1, 1)",
        keras="[g * c for g in gradients], a clip of its own",
        jax="jax.tree.map(lambda g: jnp.clip(g, -1, 1), grads)",
    )


RULE = Rule("SG412", "a clip out of sight", check)
