"""SG601: gradients that nobody clears: each step applies the sum of all so far."""

from __future__ import annotations

from collections.abc import Iterator

from steadygrad.rules.advice import code
from steadygrad.rules.base import Rule, finding
from steadygrad.rules.evidence.loop import FEW, loop_of
from steadygrad.rules.evidence.view import View
from steadygrad.rules.finding import Finding

ALWAYS = 0.9


def check(view: View) -> Iterator[Finding]:
    loop = loop_of(view)
    if loop.judged < FEW or loop.uncleared < ALWAYS * loop.judged:
        return
    yield finding(
        view,
        "SG601",
        "error",
        0.97,
        "Gradients are never cleared: each step applies the sum of all gradients so far.",
        evidence=[
            f"At the first backward after {loop.uncleared} of {loop.judged} steps, .grad still "
            "held what that step had used, and no call cleared it before the next step.",
            view.loss_sentence,
        ],
        steps=[int(view.step[0]), int(view.step[-1])],
        tensors=[],
        causes=[
            "optimizer.zero_grad() is missing from the loop",
            "zero_grad() is called on another optimizer, or on a copy of the model",
            "zero_grad() stands outside the loop over batches",
        ],
        fixes=[
            code(
                view,
                torch="optimizer.zero_grad()  # in every step, before backward\n"
                "loss.backward()\noptimizer.step()",
                keras="with tf.GradientTape() as tape:  # a new tape for every step\n"
                "    loss = loss_fn(y, model(x))",
                jax="grads = jax.grad(loss_fn)(params)  # each step anew, not added to the last",
            )
        ],
        figures={"held": loop.uncleared, "judged": loop.judged},
    )


RULE = Rule(
    "SG601",
    "gradients that are never cleared",
    check,
    supersedes=("SG201", "SG202", "SG401", "SG402", "SG502", "SG607"),
)
