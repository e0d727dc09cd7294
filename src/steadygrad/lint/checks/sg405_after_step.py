"""SG405: clipping after the step."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from steadygrad.lint.check import Check, at
from steadygrad.lint.diagnostic import Diagnostic, Severity
from steadygrad.lint.events import Kind, only_reads
from steadygrad.lint.module import Module, dotted, tail
from steadygrad.lint.steps import before, clips, events_at_fault, holds, move_to_step, since, until
from steadygrad.lint.tf import TF_CLIPS, applied_names, clipped_name
from steadygrad.lint.traces import Trace


def _faulty(trace: Trace, place: int) -> bool | None:
    """backward, step, then the clip; no gradients are made or used afterwards in this turn."""
    steps = [i for i, e in enumerate(trace.events[:place]) if e.kind is Kind.STEP]
    if not steps or not holds(trace.events[: steps[-1]], Kind.BACKWARD):
        return None if not holds(trace.events[:place], Kind.BACKWARD) else False
    if holds(since(trace, place, Kind.STEP), Kind.BACKWARD, Kind.WRITE):
        return False
    later = trace.events[place + 1 :]
    if holds(until(trace, place, Kind.BACKWARD), Kind.STEP):
        return False
    first_step = next(i for i, e in enumerate(trace.events) if e.kind is Kind.STEP)
    starts_with_backward = holds(trace.events[:first_step], Kind.BACKWARD)
    between = trace.events[: steps[-1]]
    return (
        starts_with_backward
        and not clips(between, trace.events[place].subject)
        and not holds(later, Kind.WRITE)
    )


def find(module: Module) -> Iterator[Diagnostic]:
    for turn, event in events_at_fault(module, Kind.CLIP, _faulty):
        if not only_reads(event.call):
            yield at(
                event.call,
                "SG405",
                Severity.ERROR,
                "Gradients are clipped after step(): the weights have moved already. Move the "
                "call between backward() and step().",
                move_to_step(module, turn, event, before),
            )
    yield from _tensorflow(module)


def _tensorflow(module: Module) -> Iterator[Diagnostic]:
    """A list of gradients that is applied and only then clipped."""
    if not module.imports("tensorflow"):
        return
    for call in module.calls:
        name = clipped_name(module, call)
        if tail(call.func) not in TF_CLIPS or not name:
            continue
        home = module.function(call)
        applied = [
            c.lineno
            for c in module.calls
            if module.function(c) is home and name in applied_names(c)
        ]
        made = [
            value.lineno
            for value in module.values(name, call)
            if isinstance(value, ast.Call) and tail(value.func) not in TF_CLIPS
        ]
        if (
            applied
            and made
            and max(made) < max(applied) < call.lineno
            and not _targets(module, call)
        ):
            yield at(
                call,
                "SG405",
                Severity.ERROR,
                f"`{name}` is clipped after apply_gradients(): the weights have moved already. "
                "Clip first, and apply what the clip returns.",
            )


def _targets(module: Module, call: ast.Call) -> bool:
    """Whether the clip's result goes to an apply that stands behind it."""
    statement = module.statement(call)
    if not isinstance(statement, ast.Assign):
        return False
    targets = statement.targets[0]
    parts = targets.elts if isinstance(targets, ast.Tuple | ast.List) else [targets]
    names = {dotted(part) for part in parts}
    return any(
        names & applied_names(c)
        for c in module.calls
        if c.lineno > call.lineno and module.function(c) is module.function(call)
    )


CHECK = Check(
    "SG405",
    "clipping after the step",
    proves="in every way through the loop the clip follows backward and step, no gradient is made "
    "or used behind it, and no other clip stands before the step",
    assumes="no call that is not seen makes gradients between the step and the clip",
    find=find,
    fixable=True,
)
