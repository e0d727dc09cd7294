"""SG604: an optimizer that holds parameters which the trained model does not have."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from steadygrad.rules.advice import code
from steadygrad.rules.base import Rule, finding
from steadygrad.rules.evidence.loop import FEW, loop_of, loose_of, stale_of
from steadygrad.rules.evidence.view import View
from steadygrad.rules.finding import Finding

MOST = 0.9
"""Share of the steps that must have been given the weights of the step before."""
REPEATS, REPEATED = 30, 3
"""Steps of a run, and how often all of it must have come, before a repetition is no chance."""


def check(view: View) -> Iterator[Finding]:
    stale = stale_of(view)
    if stale is None:
        unchanged = _unchanged(view)
        if unchanged:
            yield _never_applied(view, unchanged)
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


def _unchanged(view: View) -> str:
    """What tells that no step has changed the weights; empty where they move."""
    same = loop_of(view).unmoved
    if same >= max(FEW, MOST * (len(view) - 1)):
        return f"In {same} of {len(view)} steps the weights were those of the step before."
    period = _period(view)
    if not period or bool((view.lr == 0).all()):
        return ""
    often = "every step" if period == 1 else f"every {period} steps"
    return f"Gradient norms and losses repeat to the last bit, {often}, from the first one on."


def _period(view: View) -> int:
    """After how many steps norms and losses are the same again, in all of the run; 0 for never."""
    norms, losses = view.norm, view.loss
    if len(view) < REPEATS or not view.usable.all() or not np.isfinite(losses).all():
        return 0
    if not norms[0] > 0 or losses[0] == 0:  # every step may be like the first: a look at each
        return 0
    at = np.flatnonzero((norms == norms[0]) & (losses == losses[0]))
    for period in at[(at > 0) & (at <= len(view) // REPEATED)]:
        back = slice(None, -int(period))
        same = (norms[period:] == norms[back]) & (losses[period:] == losses[back])
        if same.all():
            return int(period)
    return 0


def _never_applied(view: View, said: str) -> Finding:
    return finding(
        view,
        "SG604",
        "error",
        0.95,
        "No step changes the weights that the loss is computed of.",
        evidence=[said, view.loss_sentence],
        steps=[int(view.step[0]), int(view.step[-1])],
        tensors=[],
        causes=[
            "what a step returns is thrown away: new weights, or updates that nobody adds",
            "the loss is computed of a copy of the weights",
            "the weights have few digits (float16, bfloat16), and updates are rounded away",
        ],
        fixes=[
            code(
                view,
                torch="loss = loss_fn(model(x), y)  # of the model that the optimizer was made for",
                keras="optimizer.apply_gradients(zip(gradients, model.trainable_variables))",
                jax="params = optax.apply_updates(params, updates)  # it returns the new ones\n"
                "# and the step returns params: the next one is given them",
            )
        ],
        figures={"unmoved": float(loop_of(view).unmoved)},
    )


RULE = Rule(
    "SG604",
    "an optimizer of parameters that are gone",
    check,
    supersedes=("SG302", "SG303", "SG301", "SG602", "SG603", "SG605"),
)
