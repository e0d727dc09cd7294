"""SG602: steps without a gradient: they were cleared between backward and step, or never made."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from steadygrad.robust import ENOUGH
from steadygrad.rules.advice import code
from steadygrad.rules.base import Rule, finding
from steadygrad.rules.evidence.loop import FEW, loop_of, stale_of
from steadygrad.rules.evidence.view import View
from steadygrad.rules.finding import Finding

ALWAYS = 0.9


def check(view: View) -> Iterator[Finding]:
    loop = loop_of(view)
    emptied = loop.judged >= FEW and loop.emptied >= ALWAYS * loop.judged
    if emptied or (_without(view) and stale_of(view) is None):
        yield _finding(view, emptied)


def _without(view: View) -> bool:
    """Whether not one parameter had a gradient in any step: not even one of zeros."""
    if len(view) < ENOUGH or not len(view.order) or not view.usable.any():
        return False
    measured = ~np.isnan(view.norms) | (view.figures("nonfinite") > 0)
    return not measured.any() and not view.norm[view.usable].any()


def _finding(view: View, emptied: bool) -> Finding:
    loop = loop_of(view)
    title = (
        "Gradients are cleared between backward and step: no step has anything to apply."
        if emptied
        else "No parameter of the optimizer has a gradient at any step: nothing is trained."
    )
    evidence = (
        f"In {loop.emptied} of {loop.judged} steps that were looked at, gradients were there after "
        "backward and gone when the optimizer stepped."
        if emptied
        else f"In {len(view)} steps no gradient was there."
    )
    return finding(
        view,
        "SG602",
        "error",
        0.98 if emptied else 0.9,
        title,
        evidence=[evidence, view.loss_sentence],
        steps=[int(view.step[0]), int(view.step[-1])],
        tensors=[],
        causes=[
            "optimizer.zero_grad() stands between loss.backward() and optimizer.step()",
            "model.zero_grad(), or the zero_grad() of another optimizer of the same weights",
        ]
        if emptied
        else [
            "the loss is made anew of a number (torch.tensor(loss), .item()), or under no_grad(): "
            "backward reaches nothing",
            "a detach() cuts the graph before all of them",
            "the optimizer holds other parameters than those that the loss reaches",
            "zero_grad() stands between backward() and step()",
        ],
        fixes=[_in_order(view)] if emptied else [_connected(view), _in_order(view)],
        figures={"emptied": loop.emptied, "judged": loop.judged},
    )


def _in_order(view: View) -> str:
    return code(
        view,
        torch="optimizer.zero_grad()  # before backward, not after it\n"
        "loss.backward()\noptimizer.step()",
        keras="optimizer.apply(gradients, model.trainable_variables)  # of this step",
        jax="updates, opt_state = optimizer.update(grads, opt_state, params)",
    )


def _connected(view: View) -> str:
    """What fails where the loss no longer hangs together with the weights."""
    return code(
        view,
        torch="# loss as the loss function gives it: no torch.tensor(loss), .item(), no_grad()\n"
        "assert loss.grad_fn is not None  # before loss.backward()\n"
        "assert any(p.grad is not None for g in optimizer.param_groups for p in g['params'])"
        "  # after it",
        keras="with tf.GradientTape() as tape:  # the loss is made inside, of tensors\n"
        "    loss = loss_fn(y, model(x))",
        jax="loss, grads = jax.value_and_grad(loss_fn)(params, batch)  # loss_fn reads params",
    )


RULE = Rule(
    "SG602",
    "steps without gradients",
    check,
    supersedes=("SG302", "SG303", "SG301", "SG401", "SG402", "SG605"),
)
