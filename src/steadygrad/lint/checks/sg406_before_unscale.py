"""SG406: clipping gradients that still carry the loss scale."""

from __future__ import annotations

from collections.abc import Iterator

from steadygrad.lint.check import Check, at
from steadygrad.lint.diagnostic import Diagnostic, Fix, Severity
from steadygrad.lint.events import Kind, LoopEvent
from steadygrad.lint.module import Module, dotted
from steadygrad.lint.rewriting import insert
from steadygrad.lint.steps import after, events_at_fault, holds, since, steps_of
from steadygrad.lint.traces import Trace, Turn


def _faulty(trace: Trace, place: int) -> bool | None:
    """A scaled backward, the clip, a scaler's step; no unscaling between backward and clip."""
    step = after(trace, place, Kind.STEP)
    if step is None or not step.scaled:
        return None
    sources = [e for e in trace.events[:place] if e.kind is Kind.BACKWARD]
    if not sources:
        return None
    if not sources[-1].scaled:
        return False
    return not holds(since(trace, place, Kind.STEP), Kind.UNSCALE, Kind.WRITE)


def find(module: Module) -> Iterator[Diagnostic]:
    for turn, event in events_at_fault(module, Kind.CLIP, _faulty):
        yield at(
            event.call,
            "SG406",
            Severity.ERROR,
            "Gradients still carry the loss scale where they are clipped: the threshold is "
            "thousands of times too small. Call scaler.unscale_(optimizer) first.",
            _fix(module, turn, event),
        )


def _fix(module: Module, turn: Turn, event: LoopEvent) -> Fix | None:
    statement = module.statement(event.node)
    for step in steps_of(turn, event, after):
        scaler = dotted(step.node.func.value)  # type: ignore[union-attr]
        if statement is not None and scaler and not (step.through or event.through):
            line = f"{scaler}.unscale_({step.subject})"
            return insert(module, line, statement, f"insert {line} above the clip")
    return None


CHECK = Check(
    "SG406",
    "clipping before unscale_",
    proves="backward runs on scaler.scale(loss), the step on the same scaler, and no unscale_ and "
    "no write into .grad stands between the last step and the clip",
    assumes="the scaler is enabled",
    find=find,
    fixable=True,
)
