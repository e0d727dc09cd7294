"""SG404: clipping before backward."""

from __future__ import annotations

from collections.abc import Iterator

from steadygrad.lint.check import Check, at
from steadygrad.lint.diagnostic import Diagnostic, Severity
from steadygrad.lint.events import Kind, only_reads
from steadygrad.lint.module import Module
from steadygrad.lint.steps import after, clips, events_at_fault, holds, move_to_step, since, until
from steadygrad.lint.traces import Trace


def _faulty(trace: Trace, place: int) -> bool | None:
    """A clip, then a backward, then a step; nothing since the last step gave gradients."""
    if not after(trace, place, Kind.STEP):
        return None
    sources = (Kind.BACKWARD, Kind.WRITE)
    last_step = max((i for i, e in enumerate(trace.events) if e.kind is Kind.STEP), default=-1)
    carried_over = holds(trace.events[last_step + 1 :], *sources)
    ahead = until(trace, place, Kind.STEP)
    made_later = holds(ahead, Kind.BACKWARD) and not clips(ahead, trace.events[place].subject)
    return made_later and not holds(since(trace, place, Kind.STEP), *sources) and not carried_over


def find(module: Module) -> Iterator[Diagnostic]:
    for turn, event in events_at_fault(module, Kind.CLIP, _faulty):
        if not only_reads(event.call):
            yield at(
                event.call,
                "SG404",
                Severity.ERROR,
                "Gradients are clipped before backward(): what the optimizer applies is never "
                "clipped. Move the call between backward() and step().",
                move_to_step(module, turn, event, after),
            )


CHECK = Check(
    "SG404",
    "clipping before backward",
    proves="in every way through the loop the clip comes after the last step and before the next "
    "backward, and no other clip stands between that backward and the step",
    assumes="no call that is not seen makes gradients before the clip",
    find=find,
    fixable=True,
)
