"""SG107: weights that the optimizer's own update broke: gradients were finite until then."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from steadygrad.rules.advice import code
from steadygrad.rules.base import Rule, finding
from steadygrad.rules.evidence.breaks import first_break
from steadygrad.rules.evidence.loop import optimizer_class
from steadygrad.rules.evidence.view import View
from steadygrad.rules.evidence.weights import Broken, broken_weights
from steadygrad.rules.evidence.wording import number
from steadygrad.rules.finding import Finding

SMALLEST_HALF = 5.96e-8
"""The smallest float16: under half of it, a number is 0."""


def check(view: View) -> Iterator[Finding]:
    broken = broken_weights(view)
    if broken is None or not broken.by_update:
        broken = _by_rate(view)
    if broken is None:
        return
    cause, why, fix = _reason(view, broken)
    yield finding(
        view,
        "SG107",
        "error",
        0.97,
        f"The optimizer's update broke the weights: finite before step {broken.last_good}, not "
        f"after it, with finite gradients all along.",
        evidence=[
            f"{len(broken.names)} of {len(view.tensors)} tensors hold NaN or inf at step "
            f"{broken.step}: {', '.join(broken.names[:4])}. At step {broken.last_good} none did.",
            f"Every gradient up to there was finite; the norms were "
            f"{', '.join(number(v) for v in broken.norms[-4:])}.",
            why,
        ],
        steps=[broken.last_good, broken.step],
        tensors=broken.names[:8],
        causes=[cause],
        fixes=[fix],
        figures={"tensors": len(broken.names)},
    )


def _by_rate(view: View) -> Broken | None:
    """A step that was taken with a rate of NaN or inf, and the broken gradients that follow.

    Weights are sampled now and then only; the rate is on record at every step.
    """
    story = first_break(view)
    if story is None or not story.index or not story.tensors:
        return None
    last = story.index - 1
    if np.isfinite(view.lr[last]) or view.skipped[last] or not np.isfinite(view.lr[:last]).any():
        return None
    good = int(view.step[last])
    return Broken(story.step, good, list(story.tensors), story.before.tolist(), by_update=True)


def _reason(view: View, broken: Broken) -> tuple[str, str, str]:
    """The cause, the sentence that shows it, and the fix."""
    eps = view.facts.get("eps")
    half = any(t.dtype == "float16" for t in view.tensors if t.name in broken.names)
    if half and isinstance(eps, float) and eps < SMALLEST_HALF / 2:
        return (
            f"eps = {eps:g} is 0 in float16, so that the update divides by 0",
            f"The weights are float16, whose smallest number is 6e-8; the optimizer's eps is "
            f"{eps:g}, which is 0 there: where a second moment rounds to 0, the update is 0/0 or "
            "g/0.",
            code(
                view,
                torch="model.float()  # weights in float32, before the optimizer is made\n"
                'with torch.autocast("cuda", dtype=torch.bfloat16):\n'
                "    loss = loss_fn(model(x), y)\n"
                "# or, with float16 weights: torch.optim.Adam(model.parameters(), eps=1e-4)",
                keras='keras.mixed_precision.set_global_policy("mixed_bfloat16")',
                jax="optimizer = optax.adam(lr, eps=1e-4)  # or float32 parameters",
            ),
        )
    rates = view.lr[(view.step >= broken.last_good) & (view.step < max(broken.step, 1))]
    if len(rates) and not np.isfinite(rates).all() and _rates_are_told(view):
        return (
            "the learning rate is NaN or inf",
            f"The learning rate of step {broken.last_good} is {float(rates[-1])}.",
            code(
                view,
                torch='assert all(math.isfinite(g["lr"]) for g in optimizer.param_groups)\n'
                "# a schedule that divides by 0: by a length, a step or a warm-up of 0",
                keras="assert np.isfinite(float(optimizer.learning_rate))",
                jax="assert jnp.isfinite(schedule(step))",
            ),
        )
    return (
        "the update is larger than the weights' dtype can hold",
        f"The learning rate is {number(float(rates[-1])) if len(rates) else 'unknown'}.",
        code(
            view,
            torch="assert all(p.isfinite().all() for p in model.parameters())  # after each step\n"
            'group["lr"] = group["lr"] / 10  # of each group of the optimizer',
            keras="optimizer.learning_rate = optimizer.learning_rate / 10",
            jax="optimizer = optax.adam(lr / 10)",
        ),
    )


def _rates_are_told(view: View) -> bool:
    """Whether a NaN rate is the rate: others are known, or the optimizer is one of torch's."""
    of_torch = view.framework == "torch" and optimizer_class(view) not in ("", "by hand")
    return of_torch or bool(np.isfinite(view.lr).any())


RULE = Rule(
    "SG107",
    "weights broken by an update",
    check,
    supersedes=("SG101", "SG102", "SG103", "SG104", "SG105", "SG502"),
)
