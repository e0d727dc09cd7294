"""SG606: a loss that gets probabilities for logits, or anything else for log-probabilities."""

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
_GETS = {
    "softmax": "the output of softmax",
    "sigmoid": "the output of sigmoid",
    "logits": "a layer's own output",
}


def check(view: View) -> Iterator[Finding]:
    found = logits_of(view)
    if found is None:
        return
    loss, before = found
    yield _no_logarithms(view, before) if loss == "nll_loss" else _twice(view, loss, before)


def _no_logarithms(view: View, before: str) -> Finding:
    return finding(
        view,
        "SG606",
        "error",
        0.97,
        f"nll_loss takes log-probabilities, and gets {before}.",
        evidence=[
            f"In the graph of the loss, the input of nll_loss is {_GETS[before]}, with nothing but "
            "changes of shape between them. It is then the output itself, negative, and no "
            "likelihood.",
            view.loss_sentence,
        ],
        steps=[int(view.step[0]), int(view.step[-1])],
        tensors=[],
        causes=["nll_loss was taken for cross_entropy, or softmax for log_softmax"],
        fixes=[
            code(
                view,
                torch="loss = torch.nn.functional.cross_entropy(logits, labels)  # in its place\n"
                "# or end the model in log_softmax",
                keras="keras.losses.SparseCategoricalCrossentropy(from_logits=True)",
                jax="loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels)",
            )
        ],
        figures={},
    )


def _twice(view: View, loss: str, before: str) -> Finding:
    return finding(
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
