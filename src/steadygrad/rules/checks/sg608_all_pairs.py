"""SG608: a loss that compares every output with every target, since their shapes broadcast."""

from __future__ import annotations

from collections.abc import Iterator

from steadygrad.rules.advice import code
from steadygrad.rules.base import Rule, finding
from steadygrad.rules.evidence.loop import broadcast_of
from steadygrad.rules.evidence.view import View
from steadygrad.rules.finding import Finding


def check(view: View) -> Iterator[Finding]:
    shape = broadcast_of(view)
    if not shape:
        return
    rows = max(shape)
    outputs = f"({rows}, 1)" if len(shape) > 1 else f"({rows},)"
    targets = f"({rows},)" if len(shape) > 1 else f"({rows}, 1)"
    yield finding(
        view,
        "SG608",
        "error",
        0.96,
        f"The loss compares every output with every target: {outputs} against {targets} gives "
        f"{rows} times {rows} differences.",
        evidence=[
            f"In the graph of the loss, outputs of shape {outputs} become ({rows}, {rows}) where "
            "they meet the targets. Each output is then drawn to the mean of all targets, and a "
            "constant is the best answer.",
            view.loss_sentence,
        ],
        steps=[int(view.step[0]), int(view.step[-1])],
        tensors=[],
        causes=["a layer of one output gives a second axis that the targets do not have"],
        fixes=[
            code(
                view,
                torch="loss = torch.nn.functional.mse_loss(model(x).squeeze(-1), y)\n"
                "# or targets with that axis: y.unsqueeze(-1); let their shapes be equal",
                keras="loss = keras.losses.MeanSquaredError()(y[:, None], model(x))",
                jax="loss = optax.squared_error(model(x).squeeze(-1), y).mean()",
            )
        ],
        figures={"rows": rows},
    )


RULE = Rule(
    "SG608",
    "a loss over all pairs",
    check,
    supersedes=("SG301", "SG302", "SG304", "SG305", "SG502"),
)
