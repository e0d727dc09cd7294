"""SG607: gradients of many passes, or of a whole batch, summed where their mean may be meant."""

from __future__ import annotations

from collections.abc import Iterator

from steadygrad.robust import median
from steadygrad.rules.advice import code
from steadygrad.rules.base import Rule, finding
from steadygrad.rules.evidence.loop import FEW, Loop, loop_of, summed_of
from steadygrad.rules.evidence.view import View
from steadygrad.rules.evidence.wording import number
from steadygrad.rules.finding import Finding

MANY = 4
"""Passes from which they look like micro-batches; two or three are terms of one loss."""


def check(view: View) -> Iterator[Finding]:
    loop = loop_of(view)
    if loop.passes >= MANY and loop.judged >= FEW and loop.undivided >= 0.9 * loop.judged:
        yield _many_passes(view, loop)
    elif elements := summed_of(view):
        yield _summed(view, elements)


def _summed(view: View, elements: int) -> Finding:
    return finding(
        view,
        "SG607",
        "info",
        0.8,
        f"The loss is a sum over {elements} elements, and nothing divides it.",
        evidence=[
            f"The first losses end in a sum of {elements} elements: norms (median "
            f"{number(median(view.norm[view.usable]))}) and the steps of plain SGD grow with the "
            "batch, and so must every threshold.",
        ],
        steps=[int(view.step[0]), int(view.step[-1])],
        tensors=[],
        causes=[
            'reduction="sum" or .sum() where a mean is meant',
            "a sum is meant, and the rate was chosen with it: then all is well",
        ],
        fixes=[
            code(
                view,
                torch="loss = loss / len(batch)  # or reduction='mean'",
                keras='keras.losses.MeanSquaredError(reduction="sum_over_batch_size")',
                jax="loss = jnp.mean(losses)",
            )
        ],
        figures={"elements": elements},
    )


def _many_passes(view: View, loop: Loop) -> Finding:
    return finding(
        view,
        "SG607",
        "info",
        0.8,
        f"Each step sums the gradients of {loop.passes} backward passes, and no loss is divided.",
        evidence=[
            f"None of the losses of {loop.undivided} steps ends in a division. The norm is "
            f"{loop.passes} times that of the mean of the passes (median "
            f"{number(median(view.norm[view.usable]))}), and so are the steps of plain SGD.",
        ],
        steps=[int(view.step[0]), int(view.step[-1])],
        tensors=[],
        causes=[
            "gradients are accumulated over micro-batches and the loss is not divided by their "
            "number",
            "the passes are parts of one loss, and their sum is meant: then all is well",
        ],
        fixes=[
            code(
                view,
                torch=f"(loss / {loop.passes}).backward()  # the mean over the micro-batches",
                keras="keras.optimizers.Adam(gradient_accumulation_steps=n)  # takes the mean",
                jax=f"optimizer = optax.MultiSteps(optimizer, {loop.passes})  # takes the mean",
            )
        ],
        figures={"passes": loop.passes},
    )


RULE = Rule("SG607", "many backward passes, undivided", check)
