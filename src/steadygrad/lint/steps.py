"""Questions about the order of acts within one trace."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from steadygrad.lint.diagnostic import Fix
from steadygrad.lint.events import Kind, LoopEvent
from steadygrad.lint.module import Module
from steadygrad.lint.rewriting import move
from steadygrad.lint.traces import Trace, Turn, turns

Nearest = Callable[..., LoopEvent | None]
"""`before` or `after`."""

Faulty = Callable[[Trace, int], bool | None]
"""(trace, place of the event) -> whether it is at fault; None where the trace can't tell."""


def events_at_fault(module: Module, kind: Kind, faulty: Faulty) -> Iterator[tuple[Turn, LoopEvent]]:
    """Events that are at fault in every trace that can tell, of every turn that holds them.

    Args:
        module: the source.
        kind: which events are asked about.
        faulty: the question.

    Yields:
        Each event once, with the first turn it was seen in; one that is a loop goes first.
    """
    first: dict[int, tuple[Turn, LoopEvent]] = {}
    answers: dict[int, list[bool]] = {}
    for turn in turns(module):
        for trace in turn.traces:
            for place, event in enumerate(trace.events):
                if event.kind is not kind:
                    continue
                answer = faulty(trace, place)
                if answer is not None:
                    seen = first.setdefault(id(event.node), (turn, event))
                    if turn.in_loop and not seen[0].in_loop:
                        first[id(event.node)] = (turn, event)
                    answers.setdefault(id(event.node), []).append(answer)
    for node, said in answers.items():
        if all(said):
            yield first[node]


def before(trace: Trace, place: int, *kinds: Kind) -> LoopEvent | None:
    """The nearest event of some kinds before a place."""
    return next((e for e in reversed(trace.events[:place]) if e.kind in kinds), None)


def after(trace: Trace, place: int, *kinds: Kind) -> LoopEvent | None:
    """The nearest event of some kinds after a place."""
    return next((e for e in trace.events[place + 1 :] if e.kind in kinds), None)


def since(trace: Trace, place: int, kind: Kind) -> tuple[LoopEvent, ...]:
    """The events between the last one of a kind and a place; all before it where there is none."""
    for back in range(place - 1, -1, -1):
        if trace.events[back].kind is kind:
            return trace.events[back + 1 : place]
    return trace.events[:place]


def until(trace: Trace, place: int, kind: Kind) -> tuple[LoopEvent, ...]:
    """The events between a place and the next one of a kind; all after it where there is none."""
    events = trace.events[place + 1 :]
    for forward, event in enumerate(events):
        if event.kind is kind:
            return events[:forward]
    return events


def holds(events: tuple[LoopEvent, ...], *kinds: Kind) -> bool:
    """Whether some events hold one of some kinds."""
    return any(event.kind in kinds for event in events)


def clips(events: tuple[LoopEvent, ...], subject: str) -> bool:
    """Whether some events hold a clip of a model, or one of whom nobody can tell."""
    return any(e.kind is Kind.CLIP and e.subject in (subject, "") for e in events)


def steps_of(turn: Turn, event: LoopEvent, nearest: Nearest) -> Iterator[LoopEvent]:
    """The step that is nearest to an event, in every way through the loop that has both.

    Args:
        turn: of the loop.
        event: in it.
        nearest: `before` or `after`.
    """
    for trace in turn.traces:
        nodes = [e.node for e in trace.events]
        step = nearest(trace, nodes.index(event.node), Kind.STEP) if event.node in nodes else None
        if step is not None:
            yield step


def move_to_step(module: Module, turn: Turn, event: LoopEvent, nearest: Nearest) -> Fix | None:
    """The fix that moves a clip to just before the nearest step; None where it cannot be moved."""
    statement = module.statement(event.node)
    for step in steps_of(turn, event, nearest):
        target = module.statement(step.node)
        if statement is not None and target is not None:
            return move(module, statement, target, "move the clip to just before step()")
    return None
