"""SG604: an optimizer that holds parameters which the trained model does not have."""

from __future__ import annotations

from collections.abc import Iterator

from steadygrad.rules.advice import code
from steadygrad.rules.base import Rule, finding
from steadygrad.rules.evidence.loop import loose_of, stale_of
from steadygrad.rules.evidence.view import View
from steadygrad.rules.finding import Finding


def check(view: View) -> Iterator[Finding]:
    stale = stale_of(view)
    if stale is None:
        return
    whole = stale.count >= len(view.tensors) > 0
    loose = [group for group in loose_of(view) if not group.container]
    beside = [
        f"A gradient reaches {group.listed}, which the optimizer does not hold." for group in loose
    ]
    yield finding(
        view,
        "SG604",
        "error",
        0.97,
        "The optimizer holds another model's parameters than the one that is trained."
        if whole
        else f"The optimizer holds {stale.count} parameters that the trained model no longer has.",
        evidence=[
            f"No gradient ever reaches {stale.listed}, and no module that gradients do reach has "
            "them.",
            *beside[:1],
            view.loss_sentence,
        ],
        steps=[int(view.step[0]), int(view.step[-1])],
        tensors=list(stale.names),
        causes=[
            "the optimizer was made of a copy of the model (copy.deepcopy, an EMA copy)",
            "the model was made anew, or loaded from a file, after the optimizer",
        ]
        if whole
        else [
            "a layer was replaced after the optimizer was made",
            "the model was copied or loaded anew after the optimizer was made",
        ],
        fixes=[
            code(
                view,
                torch="# once the model is as it will be trained:\n"
                "optimizer = type(optimizer)(\n"
                "    [p for p in model.parameters() if p.requires_grad],\n"
                "    lr=optimizer.param_groups[0]['lr'],\n)",
                keras="model.compile(optimizer=keras.optimizers.Adam(), loss=loss)  # anew",
                jax="opt_state = optimizer.init(params)  # of the parameters that are trained",
            )
        ],
        figures={"parameters": stale.count, "elements": stale.elements},
    )


RULE = Rule(
    "SG604",
    "an optimizer of parameters that are gone",
    check,
    supersedes=("SG302", "SG303", "SG301", "SG602", "SG603", "SG605"),
)
