"""SG503: a loss scale that has collapsed, or that keeps every step from counting."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from steadygrad.rules.advice import code
from steadygrad.rules.base import Rule, finding
from steadygrad.rules.evidence.view import View
from steadygrad.rules.evidence.wording import factor, number, percent
from steadygrad.rules.finding import Finding

COLLAPSED = 2.0**10


def check(view: View) -> Iterator[Finding]:
    scale = view.loss_scale[np.isfinite(view.loss_scale) & (view.loss_scale > 0)]
    if not view.amp or len(scale) < 5 or (scale == 1).all():  # compiled code does not tell it
        return
    last = view.skipped[-max(5, len(view) // 5) :] | view.broken[-max(5, len(view) // 5) :]
    stuck = float(last.mean())
    fallen = float(scale.max() / scale[-1])
    if fallen >= COLLAPSED and scale[-1] <= 16:
        yield _finding(view, "has collapsed", fallen, stuck)
    elif stuck >= 0.5:
        yield _finding(view, "is stuck", fallen, stuck)


def _finding(view: View, what: str, fallen: float, stuck: float) -> Finding:
    scale = view.loss_scale
    index = (
        int(np.argmax(scale <= scale.max() / COLLAPSED)) if fallen >= COLLAPSED else len(scale) - 1
    )
    return finding(
        view,
        "SG503",
        "error",
        0.93,
        f"The loss scale {what}: {number(float(scale[0]))} at the start, "
        f"{number(float(scale[-1]))} at the end.",
        evidence=[
            f"It fell by a factor of {factor(fallen)}; {percent(float(view.skipped.mean()))} of "
            "all steps were skipped.",
            f"{percent(stuck)} of the last fifth of the steps were skipped or not finite.",
        ],
        steps=[int(view.step[index])],
        tensors=[],
        causes=[
            "every step overflows whatever the scale: an operation makes NaN",
            "a fixed loss scale that is too high for these gradients",
            "activations that exceed float16 in the forward pass",
        ],
        fixes=[
            code(
                view,
                torch="# bfloat16 needs no loss scale\n"
                "with torch.autocast(device_type, dtype=torch.bfloat16):\n"
                "    loss = loss_fn(model(x), y)\n"
                "# with float16, find what overflows: GradScaler(init_scale=1.0)",
                keras='keras.mixed_precision.set_global_policy("mixed_bfloat16")',
                jax="nn.Dense(n, dtype=jnp.bfloat16)  # to compute in: it needs no loss scale",
            )
        ],
        figures={"fallen": fallen, "skipped": float(view.skipped.mean())},
    )


RULE = Rule(
    "SG503", "a loss scale collapsed or stuck", check, supersedes=("SG101", "SG102", "SG105")
)
