"""SG401: clipping on most steps: the threshold has become the learning rate."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from steadygrad.errors import SpecError
from steadygrad.policies import Policy, parse
from steadygrad.robust import median
from steadygrad.rules.advice import clip_code, code, in_model, jax_recurrent, lower_lr, recommended
from steadygrad.rules.base import Rule, finding
from steadygrad.rules.evidence.clips import MOST, Call, by_step, calls, figure, share
from steadygrad.rules.evidence.loop import normalises
from steadygrad.rules.evidence.tensors import is_cell
from steadygrad.rules.evidence.through_time import radii_at_start
from steadygrad.rules.evidence.view import View
from steadygrad.rules.evidence.wording import number, percent
from steadygrad.rules.finding import Finding

HARD = 0.5
FAR = 0.05
"""Median coefficient from which a threshold is not so far off that it can only be a mistake."""
LEARNS = 0.3
"""Share of the first loss that a run must have shed for its clipping to be what holds it."""
WIDE = 1.05
"""Spectral radius at the start from which a recurrent matrix is what makes the norms."""


def check(view: View) -> Iterator[Finding]:
    if not view.enough:
        return
    coef = view.coef[view.usable]
    rate = float((coef < 1).mean())
    if rate <= _usual_rate(view) or not np.isfinite(view.threshold[view.usable]).any():
        return
    yield _finding(view, rate, median(coef))


def _usual_rate(view: View) -> float:
    """Share of steps that the policy in force, or the script's own clip calls, may clip."""
    acted = [call for call in calls(view) if figure(call, "coef", 1.0) < 1]
    if share(acted, _bounds_each) > MOST:
        return 1.0
    clipped = view.usable & (view.coef < 1)
    unknown = clipped & np.isnan(view.cosine)
    if not acted and unknown.sum() > MOST * clipped.sum():
        return 1.0  # a clip by arithmetic that has not scaled all gradients alike
    try:
        return parse(str(view.info.get("policy", "none"))).usual_clip_rate
    except SpecError:  # a policy of the user's own: held to what a fixed threshold is held to
        return Policy().usual_clip_rate


def _bounds_each(call: Call) -> bool:
    """Whether a call bounds every tensor or element by itself: over many, some limit is passed."""
    return bool(call.get("per_tensor") or call.get("by_value"))


def _finding(view: View, rate: float, typical: float) -> Finding:
    norms, coef = view.norm[view.usable], view.coef[view.usable]
    threshold = median(view.threshold[view.usable])
    clipped = view.step[view.usable][coef < 1]
    ordinary = float(number(median(norms) * 1.5))
    better = max(ordinary, recommended(view))  # a NaN comes second, and is left
    return finding(
        view,
        "SG401",
        "warning" if typical < HARD and not normalises(view) else "info",
        min(0.95, 0.6 + 0.35 * rate),
        _title(view, rate, typical),
        evidence=[
            f"{_limits(view, threshold)}; norms before it: median {number(median(norms))}, "
            f"lowest {number(float(norms.min()))}, highest {number(float(norms.max()))}.",
            f"{len(clipped)} of {len(coef)} usable steps have a coefficient under 1.",
        ],
        steps=[int(clipped[0]), int(clipped[-1])],
        tensors=[],
        causes=[
            "the threshold was chosen for another model, batch size or loss scale",
            "the loss is summed where it was meant to be averaged, so norms are too large",
            "the learning rate was tuned together with the threshold and now depends on it",
        ],
        fixes=_fixes(view, threshold, better, typical),
        figures={"clip_rate": rate, "median_coef": typical, "threshold": threshold},
    )


def _limits(view: View, threshold: float) -> str:
    """The threshold, or those of clip calls that are for a part of the parameters each."""
    *_, last = [[], *by_step(calls(view)).values()]
    parts = [c for c in last if figure(c, "params", 0) < figure(c, "of_params", 0)]
    limits = {limit for c in parts if math.isfinite(limit := figure(c, "max_norm"))}
    if len(limits) < 2:
        return f"Threshold {number(threshold)}"
    return f"Thresholds {', '.join(map(number, sorted(limits)))}, each for a part of the parameters"


def _learns(view: View) -> bool:
    """Whether the loss falls: what is clipped away is then not what the run lacks."""
    trend = view.loss_trend
    return trend.recorded and not trend.signed and trend.fall > LEARNS and not trend.diverged


def _fixes(view: View, threshold: float, better: float, typical: float) -> list[str]:
    over = clip_code(view, f"norm:{better:g}") + "  # over the ordinary norms"
    if normalises(view) or not _learns(view):
        return [over + _steps(view)]
    if typical < FAR:
        return [
            f"{over}\n# and steps as long as now, by which it learns; raise the rate from there:\n"
            + lower_lr(view, 1 / typical)
        ]
    return [
        *_at_the_source(view),
        "# the run learns as it is, with steps of lr * threshold: a higher threshold makes them\n"
        "# longer, and lets through what is held back now. Let both run before you keep one:\n"
        f"#   steadygrad compare --clip norm:{threshold:g} --clip norm:{2 * threshold:g} script.py",
    ]


def _at_the_source(view: View) -> list[str]:
    """Where a recurrent matrix makes the norms that are clipped: the matrix, not the threshold."""
    return [
        code(
            view,
            torch=f"torch.nn.init.orthogonal_({in_model(view.tensors[column].name)})"
            f"  # at the start; its spectral radius is {number(float(radius))}",
            keras='keras.layers.SimpleRNN(n, recurrent_initializer="orthogonal")',
            jax=jax_recurrent(view, "SimpleCell"),
        )
        for column, radius in enumerate(radii_at_start(view))
        if radius > WIDE and is_cell(view.tensors[column])
    ]


def _title(view: View, rate: float, typical: float) -> str:
    often = (
        f"{percent(rate)} of the steps are clipped, by a median coefficient of {number(typical)}"
    )
    if normalises(view):
        return f"{often}; this optimizer's steps do not depend on it."
    return f"Over-clipping: {often}; the threshold has become the learning rate."


def _steps(view: View) -> str:
    """What the higher threshold does to the steps."""
    if normalises(view):
        return "\n# the optimizer divides by the size of its gradients: steps stay as they are"
    return "\n# steps get as long as lr says: if the loss jumps, lower lr, not the threshold"


RULE = Rule("SG401", "over-clipping", check)
