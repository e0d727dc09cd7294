"""SG506: a weight decay that wins: the weights shrink to nothing, and with them the model."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from steadygrad.robust import median
from steadygrad.rules.advice import code
from steadygrad.rules.base import Rule, finding
from steadygrad.rules.evidence.loop import optimizer_class
from steadygrad.rules.evidence.steps import Array
from steadygrad.rules.evidence.view import View
from steadygrad.rules.evidence.wording import number, percent
from steadygrad.rules.finding import Finding

LEFT = 0.2
"""Share of its first size under which a matrix counts as shrunk."""
USUAL = 1e-4


def check(view: View) -> Iterator[Finding]:
    steps, norms = view.sample("weight_norm")
    decay = view.facts.get("weight_decay")
    if len(steps) < 3 or not len(view.weights) or view.lost or decay == 0:
        return
    with np.errstate(divide="ignore", invalid="ignore"):
        left = norms[:, view.weights] / norms[0, view.weights]
    left = left[:, np.isfinite(left).all(axis=0)]
    if not left.shape[1] or (left[-1] > LEFT).any() or not _falls(left):
        return
    if _learns(view) or (decay is None and left[-1].max() > LEFT**2):
        return
    yield _finding(view, median(left[-1]), decay, int(steps[-1]))


def _falls(left: Array) -> bool:
    """Whether the matrices shrink from sample to sample, all of them, until little is left."""
    falling = np.diff(left, axis=0) < 0
    return bool((falling | (left[1:] < LEFT)).mean() > 0.9)


def _learns(view: View) -> bool:
    """Whether the loss got anywhere all the same, or nobody knows it."""
    trend = view.loss_trend
    return not trend.recorded or trend.signed or trend.end < 0.7 * trend.first


def _finding(view: View, left: float, decay: float | None, step: int) -> Finding:
    value = "" if decay is None else f" of {decay:g}"
    name = optimizer_class(view)
    inside = decay is not None and "w" not in name
    smaller = number(min(USUAL, decay / 1000) if decay else USUAL)
    return finding(
        view,
        "SG506",
        "error",
        0.93 if decay else 0.85,
        f"The weight decay{value} wins: {percent(left)} of the weights' size is left, and the loss "
        "stays where a constant answer has it.",
        evidence=[
            f"The norm of every matrix falls, to {percent(left)} of the first (median) by step "
            f"{step}.",
            *(
                [f"{name} adds the weights times {decay:g} to the gradients, which outweighs them."]
                if inside
                else []
            ),
            view.loss_sentence,
        ],
        steps=[int(view.step[0]), step],
        tensors=[view.tensors[i].name for i in view.weights[:8]],
        causes=[
            "a weight_decay that is far too large for the learning rate",
            "a penalty on the weights in the loss, summed where a mean was meant",
        ],
        fixes=[
            code(
                view,
                torch="for group in optimizer.param_groups:\n"
                f'    group["weight_decay"] = {smaller}',
                keras=f"keras.optimizers.AdamW(lr, weight_decay={smaller})",
                jax=f"optax.adamw(lr, weight_decay={smaller})",
            )
        ],
        figures={"left": left},
    )


RULE = Rule(
    "SG506",
    "a weight decay that wins",
    check,
    supersedes=("SG301", "SG302", "SG304", "SG305", "SG605"),
)
