"""SG601: gradients that are never cleared."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from steadygrad.lint.check import Check, at
from steadygrad.lint.diagnostic import Diagnostic, Fix, Severity
from steadygrad.lint.events import Kind, LoopEvent
from steadygrad.lint.module import Module
from steadygrad.lint.rewriting import insert
from steadygrad.lint.steps import before, events_at_fault, holds
from steadygrad.lint.traces import Trace, Turn

_CLEARING = ("zero_grad", "clear_grad", ".grad = None", ".grad=None", "grad.zero_", "first_step")
"""Text of anything that clears gradients: where one stands anywhere, the check is silent."""

_ENGINES = (
    "torch.distributed.autograd",
    "deepspeed",
    "fairscale",
    "colossalai",
    "paddle",
    "oneflow",
    "mindspore",
    "jittor",
)
"""Libraries whose `step` clears by itself, or whose API only looks like torch's."""


def _faulty(trace: Trace, place: int) -> bool | None:
    return holds(trace.events, Kind.BACKWARD)


def find(module: Module) -> Iterator[Diagnostic]:
    if any(text in module.text for text in _CLEARING) or not module.imports("torch"):
        return
    if any(module.imports(engine) for engine in _ENGINES):
        return
    for turn, event in events_at_fault(module, Kind.STEP, _faulty):
        if turn.in_loop and not _made_inside(module, turn, event):
            yield at(
                event.call,
                "SG601",
                Severity.WARNING,
                "Gradients are never cleared: each backward() adds to those of all steps before. "
                f"Call {event.subject}.zero_grad() before backward().",
                _fix(module, turn, event),
            )


def _made_inside(module: Module, turn: Turn, event: LoopEvent) -> bool:
    """Whether the optimizer is made anew in every turn, and its gradients with it."""
    made = module.assignments.get(event.subject, [])
    return any(turn.home in module.parents(statement) for statement in made)


def _fix(module: Module, turn: Turn, event: LoopEvent) -> Fix | None:
    line = f"{event.subject}.zero_grad()"
    for trace in turn.traces:
        nodes = [e.node for e in trace.events]
        if event.node in nodes:
            backward = before(trace, nodes.index(event.node), Kind.BACKWARD)
            statement = module.statement(backward.node) if backward else None
            inside = isinstance(module.parent(statement), ast.With) if statement else False
            if backward and statement and not backward.through and not event.through and not inside:
                return insert(module, line, statement, f"insert {line} above backward()")
    return None


CHECK = Check(
    "SG601",
    "gradients never cleared",
    proves="a loop runs backward and step, and the file has no zero_grad and no other spelling "
    "of clearing",
    assumes="no imported helper clears them",
    find=find,
    fixable=True,
)
