"""SG207: updates that spike, and a loss that follows them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from steadygrad.robust import columns_median, median
from steadygrad.rules.advice import clip_code, code
from steadygrad.rules.base import Rule, finding
from steadygrad.rules.evidence.loop import optimizer_class
from steadygrad.rules.evidence.steps import Array
from steadygrad.rules.evidence.view import View
from steadygrad.rules.evidence.wording import number, percent, times
from steadygrad.rules.finding import Finding

GROWN = 5.0
"""Times its usual size from which an update spikes, beyond what the learning rate explains."""
AROUND = 8
"""Steps before and after it over which the loss is compared."""
FIRST = 4
"""Steps that count as the start: updates are ordinary later."""


@dataclass(frozen=True)
class _Spike:
    """An update that was far over its usual size while the loss was still in its range.

    Attributes:
        step: its number.
        ratio: of update to weight, the median over matrices.
        factor: times the usual ratio.
        before: the loss around it.
        after: the loss in the steps that follow.
        delay: steps until the loss left its range.
    """

    step: int
    ratio: float
    factor: float
    before: float
    after: float
    delay: int


def check(view: View) -> Iterator[Finding]:
    if not view.loss_trend.recorded or not len(view.weights):
        return
    spikes = list(_spikes(view))
    if spikes:
        yield _finding(view, spikes)


def _spikes(view: View) -> Iterator[_Spike]:
    usual_steps, usual = _rated(view, *view.sample("update_ratio"))
    late = usual_steps >= FIRST
    if late.sum() < 3:
        return
    typical = columns_median(usual[late])
    steps, ratios = (
        np.concatenate(both)
        for both in zip(
            (usual_steps, usual), _rated(view, *view.sample("unusual_update")), strict=True
        )
    )
    end = -1
    for row in np.argsort(steps, kind="stable"):
        step = int(steps[row])
        with np.errstate(divide="ignore", invalid="ignore"):
            factor = median(ratios[row] / typical)
        if step < FIRST or step <= end or not factor >= GROWN or math.isinf(factor):
            continue
        place = int(np.searchsorted(view.step, step))
        followed = _followed(view, place)
        if followed is not None:
            rate = float(view.lr[place]) if np.isfinite(view.lr[place]) else 1.0
            yield _Spike(step, median(ratios[row]) * (rate or 1.0), factor, *followed)
            end = step + AROUND


def _rated(view: View, steps: Array, ratios: Array) -> tuple[Array, Array]:
    """Updates of matrices over their size and, where it is known, over the learning rate."""
    if not len(steps):
        return steps, ratios[:, view.weights]
    places = np.clip(np.searchsorted(view.step, steps), 0, len(view) - 1)
    rates = view.lr[places]
    rated = np.isfinite(view.lr).all() and (view.lr > 0).all()
    return steps, ratios[:, view.weights] / (rates[:, None] if rated else 1.0)


def _followed(view: View, place: int) -> tuple[float, float, int] | None:
    """The loss before and after a step, and when it rose; None where it did not, or rose before."""
    before = view.loss[max(0, place - AROUND) : place + 1]
    after = view.loss[place + 1 : place + 1 + AROUND]
    before, after = before[np.isfinite(before)], after[np.isfinite(after)]
    if len(before) < 3 or len(after) < 3:
        return None
    level, noise = median(before), view.loss_trend.noise
    rise = max(0.2 * abs(level), 4 * noise)
    if median(after) - level < rise or before[-1] - level > 0.5 * rise:
        return None
    return level, median(after), int(np.flatnonzero(after - level > 0.5 * rise)[0]) + 1


def _finding(view: View, spikes: list[_Spike]) -> Finding:
    largest = max(spikes, key=lambda s: s.factor)
    how_often = "once" if len(spikes) == 1 else f"{len(spikes)} times"
    steps = f"{largest.delay} step{'s' * (largest.delay > 1)}"
    trend = view.loss_trend
    lost = trend.end > largest.before + max(0.5 * abs(largest.before), 4 * trend.noise)
    return finding(
        view,
        "SG207",
        "warning" if lost else "info",
        0.75,
        f"The update spikes before the loss does, {how_often}: at step {largest.step} it is "
        f"{times(largest.factor)} its usual size.",
        evidence=[
            f"At step {largest.step} the update is {percent(largest.ratio)} of the weights (median "
            f"of the matrices), {times(largest.factor)} what it usually is at this rate.",
            f"The loss is {number(largest.before)} until then; it rises {steps} later, to "
            f"{number(largest.after)}.",
            view.loss_sentence,
        ],
        steps=[s.step for s in spikes],
        tensors=[],
        causes=_causes(view),
        fixes=_fixes(view),
        figures={"factor": largest.factor, "ratio": largest.ratio, "delay": largest.delay},
    )


def _adaptive(view: View) -> bool:
    return any(kind in optimizer_class(view) for kind in ("adam", "lamb", "rmsprop", "lion"))


def _causes(view: View) -> list[str]:
    if _adaptive(view):
        return [
            "the second moment lags behind gradients that grow after a quiet stretch: beta2 is "
            "too high for them",
            "a learning rate that is too high for this part of the way",
        ]
    return ["one batch gives a gradient far over the others", "a learning rate that is too high"]


def _fixes(view: View) -> list[str]:
    shorter = code(
        view,
        torch='for group in optimizer.param_groups:\n    group["betas"] = (0.9, 0.95)',
        keras="optimizer = keras.optimizers.Adam(lr, beta_2=0.95)",
        jax="optimizer = optax.adam(lr, b2=0.95)",
    )
    by_update = clip_code(view, "update-rms:1.0") + "  # bounds the update itself"
    return [by_update, shorter] if _adaptive(view) else [clip_code(view, "auto")]


RULE = Rule("SG207", "updates that spike before the loss", check)
