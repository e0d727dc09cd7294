"""SG602: gradients cleared between backward and step."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from steadygrad.lint.check import Check, at
from steadygrad.lint.diagnostic import Diagnostic, Fix, Severity
from steadygrad.lint.events import Kind, LoopEvent, event_of
from steadygrad.lint.module import Module
from steadygrad.lint.rewriting import move
from steadygrad.lint.steps import events_at_fault
from steadygrad.lint.traces import Trace, Turn

_HIDES_BACKWARD = re.compile(r"backward|train|update|optimi[sz]e|accum|loss|forward_step|closure")


def _faulty(trace: Trace, place: int) -> bool | None:
    """backward, a clearing of the same optimizer, its step; no gradients in between."""
    event = trace.events[place]
    made = False
    for earlier in reversed(trace.events[:place]):
        if earlier.kind is Kind.STEP and earlier.subject == event.subject:
            break
        made |= earlier.kind is Kind.BACKWARD
    if not made:
        return False
    for later in trace.events[place + 1 :]:
        if later.kind in (Kind.BACKWARD, Kind.WRITE):
            return False
        if later.kind is Kind.STEP and later.subject == event.subject:
            return True
    return False


def find(module: Module) -> Iterator[Diagnostic]:
    for turn, event in events_at_fault(module, Kind.CLEAR, _faulty):
        if not _may_hide_a_backward(module, turn, event):
            yield at(
                event.call,
                "SG602",
                Severity.ERROR,
                "Gradients are cleared between backward() and step(): the optimizer steps with "
                "none. Clear them before backward() or after step().",
                _fix(module, turn, event),
            )


def _step_of(turn: Turn, event: LoopEvent) -> LoopEvent | None:
    for trace in turn.traces:
        nodes = [e.node for e in trace.events]
        if event.node in nodes:
            for later in trace.events[nodes.index(event.node) + 1 :]:
                if later.kind is Kind.STEP and later.subject == event.subject:
                    return later
    return None


def _may_hide_a_backward(module: Module, turn: Turn, event: LoopEvent) -> bool:
    """Whether a call between the clearing and the step may make gradients unseen."""
    step = _step_of(turn, event)
    if step is None or step.through or event.through:
        return step is None
    lines = range(event.call.lineno, step.call.lineno)
    return any(
        call.lineno in lines
        and event_of(module, call) is None
        and _HIDES_BACKWARD.search(ast.unparse(call.func))
        for call in module.calls
    )


def _fix(module: Module, turn: Turn, event: LoopEvent) -> Fix | None:
    """Move the clearing behind the step: in front of what follows it, or of backward."""
    statement = module.statement(event.node)
    if statement is None or event.through:
        return None
    for trace in turn.traces:
        nodes = [e.node for e in trace.events]
        if event.node in nodes:
            for earlier in reversed(trace.events[: nodes.index(event.node)]):
                if earlier.kind is Kind.BACKWARD:
                    target = module.statement(earlier.node)
                    says = "move the clearing to just before backward()"
                    return move(module, statement, target, says) if target else None
    return None


CHECK = Check(
    "SG602",
    "gradients cleared before the step",
    proves="in every way through the loop zero_grad() of an optimizer stands between a backward "
    "and that optimizer's step, and nothing between them makes or writes gradients",
    assumes="the step does not work from gradients that were saved elsewhere",
    find=find,
    fixable=True,
)
