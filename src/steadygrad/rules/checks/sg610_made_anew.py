"""SG610: an optimizer that is made anew at every step, and never gets past its first."""

from __future__ import annotations

from collections.abc import Iterator

from steadygrad.rules.advice import code
from steadygrad.rules.base import Rule, finding
from steadygrad.rules.evidence.loop import FEW, loop_of, optimizer_class
from steadygrad.rules.evidence.view import View
from steadygrad.rules.evidence.wording import percent
from steadygrad.rules.finding import Finding

MOST = 0.9
"""Share of the steps that must be the first of an optimizer."""
MANY = 8
"""Optimizers that took one step each, from which they are one."""


def check(view: View) -> Iterator[Finding]:
    renewed = loop_of(view).renewed
    if renewed >= max(FEW, MOST * (len(view) - 1)):
        said = f"{renewed} of its {len(view)} steps began with a state just made."
        yield _finding(view, "error", 0.95, said)
        return
    short = _of_one_step(view)
    if short >= MANY and view.optimizer == view.first_optimizer:
        rate = percent(short / len(view.run.steps))
        said = f"{short} optimizers took one step each, {rate} of all steps."
        # a copy of the model for each task, as in meta-learning, is not told from one model
        yield _finding(view, "warning", 0.75, said)


def _of_one_step(view: View) -> int:
    """How many optimizers of one kind took one step each, where next to no steps are others'.

    Of plain SGD nothing is lost with them.
    """
    sizes = [len(part.rows) for part in view.run.parts.values()]
    ones = [number for number, part in view.run.parts.items() if len(part.rows) == 1]
    if len(ones) < MANY or len(ones) < MOST * sum(sizes) or optimizer_class(view) == "sgd":
        return 0
    kinds = {o.get("index"): o.get("class") for o in view.info.get("optimizers") or ()}
    shapes = [tensor.shape for tensor in view.tensors]
    return sum(
        shapes == _shapes(view, number) and kinds.get(number) == kinds.get(view.optimizer)
        for number in ones
    )


def _shapes(view: View, number: int) -> list[tuple[int, ...]]:
    return [view.run.tensors[column].shape for column in view.run.parts[number].columns]


def _finding(view: View, severity: str, confidence: float, said: str) -> Finding:
    made = code(
        view,
        torch="optimizer = torch.optim.Adam(model.parameters(), lr=lr)  # once, above the loop",
        keras="optimizer = keras.optimizers.Adam(lr)  # once, above the loop",
        jax="opt_state = optimizer.init(params)  # once, above the loop\n"
        "updates, opt_state = optimizer.update(grads, opt_state, params)\n"
        "# and the step returns opt_state: the next one is given it",
    )
    return finding(
        view,
        "SG610",
        severity,
        confidence,
        "The optimizer is made anew at every step: its averages and its schedule never begin.",
        evidence=[said, *([view.loss_sentence] if len(view) > 1 else [])],
        steps=[int(view.step[0])],
        tensors=[],
        causes=[
            "the optimizer is made, or its state initialised, inside of the loop or of the step",
            "the state that the step returns is dropped, and another made in its place",
        ],
        fixes=[made],
        figures={"renewed": float(loop_of(view).renewed or _of_one_step(view))},
    )


RULE = Rule("SG610", "an optimizer that is made anew", check)
