"""SG609: targets outside of what their loss takes: it has no lowest value then."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from steadygrad.rules.advice import code
from steadygrad.rules.base import Rule, finding
from steadygrad.rules.evidence.loop import criterion_of, targets_of
from steadygrad.rules.evidence.view import View
from steadygrad.rules.evidence.wording import number
from steadygrad.rules.finding import Finding

SLACK = 1e-3
"""How far under 0 rounding may carry a loss."""


def check(view: View) -> Iterator[Finding]:
    targets = targets_of(view)
    if targets is None:
        if criterion_of(view) == "binary_crossentropy" and (view.loss < -SLACK).any():
            yield _below_zero(view)
        return
    loss, lowest, highest = targets["loss"], targets["lowest"], targets["highest"]
    torch, keras, jax = _fix(lowest, highest)
    yield finding(
        view,
        "SG609",
        "error",
        0.97,
        f"{loss} takes targets from 0 to 1, and gets {number(lowest)} to {number(highest)}.",
        evidence=[
            "Its graph holds them. With a target over 1 or under 0 the loss has no lowest value: "
            "it falls below 0 and on, and drives the outputs to infinity.",
            view.loss_sentence,
        ],
        steps=[int(view.step[0]), int(view.step[-1])],
        tensors=[],
        causes=_causes(lowest, highest),
        fixes=[code(view, torch=torch, keras=keras, jax=jax)],
        figures={"lowest": lowest, "highest": highest},
    )


def _below_zero(view: View) -> Finding:
    lowest = float(np.nanmin(view.loss))
    return finding(
        view,
        "SG609",
        "error",
        0.95,
        f"A binary cross-entropy of {number(lowest)}: its targets are not from 0 to 1.",
        evidence=[
            "With targets from 0 to 1 it is never under 0. With others it has no lowest value, and "
            "drives the outputs to infinity.",
            view.loss_sentence,
        ],
        steps=[int(view.step[int(np.nanargmin(view.loss))])],
        tensors=[],
        causes=_causes(0, 255),
        fixes=[code(view, **dict(zip(("torch", "keras", "jax"), _fix(0, 255), strict=True)))],
        figures={"lowest": lowest},
    )


def _causes(lowest: float, highest: float) -> list[str]:
    if lowest >= -1 and highest <= 1:
        return ["labels of -1 and 1", "inputs normalised to a mean of 0 as targets"]
    return ["pixels of 0 to 255 that nothing divides", "class numbers where 0 and 1 are due"]


def _fix(lowest: float, highest: float) -> tuple[str, str, str]:
    """What brings these targets to 0 to 1, in the three frameworks."""
    if lowest < 0:
        low, width = f"{lowest:g}", f"{highest - lowest:g}"
        line = f"target = (target - ({low})) / {width}  # to 0 to 1"
        return line, line, line
    line = f"target = target / {highest:g}  # to 0 to 1"
    classes = "# class numbers: {} in its place"
    return (
        f"{line}\n{classes.format('torch.nn.functional.cross_entropy')}",
        f"{line}\n{classes.format('keras.losses.SparseCategoricalCrossentropy')}",
        f"{line}\n{classes.format('optax.softmax_cross_entropy_with_integer_labels')}",
    )


RULE = Rule(
    "SG609",
    "targets that the loss does not take",
    check,
    supersedes=("SG201", "SG202", "SG301", "SG302", "SG304", "SG401", "SG502", "SG505"),
)
