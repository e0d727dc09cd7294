"""SG606: a loss that gets probabilities for logits, or anything else for log-probabilities."""

from __future__ import annotations

from collections.abc import Iterator

from steadygrad.rules.advice import code
from steadygrad.rules.base import Rule, finding
from steadygrad.rules.evidence.loop import criterion_of, logits_of
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


_PROBABILITIES = {
    "softmax": "torch.softmax(model(x), 1)",
    "log_softmax": "torch.softmax(model(x), 1)",
    "sigmoid": "torch.sigmoid(model(x))",
}


def check(view: View) -> Iterator[Finding]:
    logits = logits_of(view)
    if logits is None:
        return
    loss, before = logits
    if loss == "nll_loss" and before in _GETS:
        yield _no_logarithms(view, before)
    elif before == "linear":
        yield _no_probabilities(view, loss)
    elif before in _WHAT:
        yield _twice(view, loss, before)


def _no_probabilities(view: View, loss: str) -> Finding:
    return finding(
        view,
        "SG606",
        "error",
        0.96,
        f"{loss} takes probabilities, and gets a layer's own output.",
        evidence=[
            "The model was compiled with from_logits=False, and its last layer has no activation. "
            "Outputs under 0 are cut to 1e-7 and over 1 to nearly 1, where they get no gradient.",
            view.loss_sentence,
        ],
        steps=[int(view.step[0]), int(view.step[-1])],
        tensors=[],
        causes=["from_logits=True is missing, or a softmax or sigmoid at the end of the model"],
        fixes=[
            code(
                view,
                torch="loss = torch.nn.functional.cross_entropy(logits, labels)",
                keras=f"model.compile(optimizer, keras.losses.{_class_of(loss)}(from_logits=True))",
                jax="loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels)",
            )
        ],
        figures={},
    )


def _class_of(loss: str) -> str:
    """Keras' class of a loss function: ``binary_crossentropy`` is of ``BinaryCrossentropy``."""
    return "".join(part.capitalize() for part in loss.split("_"))


def _mended_by_keras(view: View) -> bool:
    """On TensorFlow, Keras looks behind an activation of its own, and warns."""
    return bool(criterion_of(view)) and view.info.get("backend") == "tensorflow"


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


def _seen_in(view: View, loss: str, before: str) -> str:
    """Where it is seen, and what it does."""
    if not criterion_of(view):
        return (
            f"In the graph of the loss, the input of {loss} is the output of {before}, with "
            f"nothing but changes of shape between them: {_WHAT[before]}."
        )
    mended = " Keras takes the activation's input in its place here, on TensorFlow alone."
    return (
        f"The model was compiled with from_logits=True, and ends in {before}: {_WHAT[before]}."
        + mended * _mended_by_keras(view)
    )


def _twice(view: View, loss: str, before: str) -> Finding:
    return finding(
        view,
        "SG606",
        "info" if before == "log_softmax" or _mended_by_keras(view) else "error",
        0.97,
        f"{before} is applied before {loss}, which applies its own.",
        evidence=[
            _seen_in(view, loss, before),
            view.loss_sentence,
        ],
        steps=[int(view.step[0]), int(view.step[-1])],
        tensors=[],
        causes=[f"the model ends in {before}, and the loss was written for logits"],
        fixes=[
            code(
                view,
                torch=f"return logits  # in forward, in place of {before}(logits)\n"
                f"probabilities = {_PROBABILITIES[before]}  # only where they are read",
                keras="keras.losses."
                f"{_class_of(criterion_of(view) or 'sparse_categorical_crossentropy')}"
                "(from_logits=False)",
                jax="loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels)",
            )
        ],
        figures={},
    )


RULE = Rule("SG606", "a probability where logits are due", check, supersedes=("SG301",))
