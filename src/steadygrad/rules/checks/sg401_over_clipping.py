"""SG401: clipping on most steps: the threshold has become the learning rate."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from steadygrad.errors import SpecError
from steadygrad.policies import Policy, parse
from steadygrad.rules.advice import clip_code, code, recommended
from steadygrad.rules.base import Rule, finding
from steadygrad.rules.evidence.view import View, median, number, percent
from steadygrad.rules.finding import Finding

HARD = 0.5
NORMALISED = {"adam", "adamw", "nadam", "radam", "adamax", "rmsprop"}
"""Optimizers whose step does not change when all gradients are multiplied by one number."""


def check(view: View) -> Iterator[Finding]:
    if not view.enough:
        return
    coef = view.coef[view.usable]
    rate = float((coef < 1).mean())
    if rate <= _usual_rate(view) or not np.isfinite(view.threshold[view.usable]).any():
        return
    yield _finding(view, rate, median(coef))


def _usual_rate(view: View) -> float:
    """Share of steps that the policy in force may clip."""
    try:
        return parse(str(view.info.get("policy", "none"))).usual_clip_rate
    except SpecError:  # a policy of the user's own: held to what a fixed threshold is held to
        return Policy().usual_clip_rate


def _finding(view: View, rate: float, typical: float) -> Finding:
    norms, coef = view.norm[view.usable], view.coef[view.usable]
    threshold = median(view.threshold[view.usable])
    clipped = view.step[view.usable][coef < 1]
    better = max(recommended(view), float(number(median(norms) * 1.5)))
    return finding(
        view,
        "SG401",
        "warning" if typical < HARD else "info",
        min(0.95, 0.6 + 0.35 * rate),
        f"Over-clipping: {percent(rate)} of the steps are clipped, by a median coefficient of "
        f"{number(typical)}; the threshold has become the learning rate.",
        evidence=[
            f"Threshold {number(threshold)}; norms before it: median {number(median(norms))}, "
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
        fixes=[  # both lines or none: a higher threshold alone takes longer steps
            clip_code(view, f"norm:{better:g}")
            + "  # over the ordinary norms\n"
            + _keep_step(view, typical),
        ],
        figures={"clip_rate": rate, "median_coef": typical, "threshold": threshold},
    )


def _keep_step(view: View, typical: float) -> str:
    """The learning rate that keeps the steps' length; Adam's do not depend on the coefficient."""
    if NORMALISED & {str(o.get("class")).lower() for o in view.info.get("optimizers") or ()}:
        return "# Adam divides by the size of its gradients: steps stay as long as they were"
    note = f"# the steps were {number(typical)} of what lr said: with the new threshold start at"
    lr = median(view.lr) * typical
    text = number(lr) if np.isfinite(lr) else f"{number(typical)} * lr"
    return code(
        view,
        torch=f"{note}\noptimizer = torch.optim.SGD(model.parameters(), lr={text})",
        keras=f"{note}\noptimizer.learning_rate = {text}",
        jax=f"{note}\noptimizer = optax.sgd({text})",
    )


RULE = Rule("SG401", "over-clipping", check)
