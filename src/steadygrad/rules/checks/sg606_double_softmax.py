"""SG606: a probability where a loss wants logits."""

from __future__ import annotations

from collections.abc import Iterator

from steadygrad.rules.advice import code
from steadygrad.rules.base import Rule, finding
from steadygrad.rules.evidence.loop import logits_of
from steadygrad.rules.evidence.view import View
from steadygrad.rules.finding import Finding

_WHAT = {
    "softmax": "its gradient is multiplied by p (1 - p) of the outputs, and the loss cannot come "
    "near 0: over K classes no further down than log(1 + (K - 1) / e)",
    "sigmoid": "outputs between 0 and 1 leave no output certain, and flatten the gradient",
    "log_softmax": "applied twice it gives what it gives once, so this costs time and no more",
}


def check(view: View) -> Iterator[Finding]:
    found = logits_of(view)
    if found is None:
        return
    loss, before = found
    yield finding(
        view,
        "SG606",
        "info" if before == "log_softmax" else "error",
        0.97,
        f"{before} is applied before {loss}, which applies its own.",
        evidence=[
            f"In the graph of the loss, the input of {loss} is the output of {before}, with "
            f"nothing but changes of shape between them: {_WHAT[before]}.",
            view.loss_sentence,
        ],
        steps=[int(view.step[0]), int(view.step[-1])],
        tensors=[],
        causes=[f"the model ends in {before}, and the loss was written for logits"],
        fixes=[
            code(
                view,
                torch=f"return logits  # in forward, in place of {before}(logits)\n"
                "probabilities = torch.softmax(model(x), 1)  # only where they are read",
                keras="keras.losses.SparseCategoricalCrossentropy(from_logits=False)",
                jax="loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels)",
            )
        ],
        figures={},
    )


RULE = Rule("SG606", "a probability where logits are due", check, supersedes=("SG301",))
