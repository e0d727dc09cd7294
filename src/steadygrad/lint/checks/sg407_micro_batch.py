"""SG407: clipping after every micro-batch of an accumulated step."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from steadygrad.lint.check import Check, at
from steadygrad.lint.diagnostic import Diagnostic, Edit, Fix, Severity
from steadygrad.lint.events import Kind, LoopEvent, only_reads
from steadygrad.lint.module import Module, argument, dotted, number, tail
from steadygrad.lint.rewriting import remove
from steadygrad.lint.steps import after, holds
from steadygrad.lint.tf import is_optax
from steadygrad.lint.traces import Trace, Turn, turns

_COUNTS = re.compile(r"%|accum|sync_gradients|is_last|update_freq|update_every", re.IGNORECASE)


def find(module: Module) -> Iterator[Diagnostic]:
    reported: set[ast.AST] = set()
    for turn in turns(module):
        for event in [*_below_a_test(module, turn), *_in_an_inner_loop(turn)]:
            if event.node not in reported and not only_reads(event.call):
                reported.add(event.node)
                yield at(
                    event.call,
                    "SG407",
                    Severity.WARNING,
                    "Gradients are clipped after every micro-batch, the step comes only after "
                    "several: parts of the sum are cut, and batches count unequally. Clip once, "
                    "just before step().",
                    _fix(module, turn, event),
                )
    yield from _accelerate(module)
    yield from _optax(module)


def _below_a_test(module: Module, turn: Turn) -> Iterator[LoopEvent]:
    """The step runs every k-th time, the clip every time, and gradients add up in between."""
    if not turn.in_loop:
        return
    waiting = [t for t in turn.traces if not holds(t.events, Kind.STEP)]
    stepping = [t for t in turn.traces if holds(t.events, Kind.STEP)]
    guards = {g for t in stepping for e in t.events if e.kind is Kind.STEP for g in e.guards}
    if not any(_counts(module, turn, guard) for guard in guards):
        return
    for trace in waiting:
        if holds(trace.events, Kind.CLEAR):
            continue
        for place, event in enumerate(trace.events):
            made = event.kind is Kind.CLIP and holds(trace.events[:place], Kind.BACKWARD)
            if made and not any(_counts(module, turn, guard) for guard in event.guards):
                yield event


def _counts(module: Module, turn: Turn, guard: str) -> bool:
    """Whether a test counts batches, by itself or by the name it was given."""
    if _COUNTS.search(guard):
        return True
    values = module.values(guard, turn.home.body[0]) if guard.isidentifier() else []
    return any(_COUNTS.search(ast.unparse(value)) for value in values)


def _in_an_inner_loop(turn: Turn) -> Iterator[LoopEvent]:
    """backward and clip in a loop of their own, the step behind that loop."""
    for trace in turn.traces:
        for place, event in enumerate(trace.events):
            if event.kind is Kind.CLIP and _inner(trace, place, event):
                yield event


def _inner(trace: Trace, place: int, event: LoopEvent) -> bool:
    step = after(trace, place, Kind.STEP)
    backward = [e for e in trace.events[:place] if e.kind is Kind.BACKWARD]
    if step is None or not backward or event.depth <= step.depth:
        return False
    inside = [e for e in trace.events if e.depth >= event.depth]
    closure = step.node is event.through
    return (
        backward[-1].depth == event.depth
        and not closure
        and not any(e.kind in (Kind.CLEAR, Kind.WRITE) for e in inside)
    )


def _fix(module: Module, turn: Turn, event: LoopEvent) -> Fix | None:
    """Move the clip into the branch of the step, where both are plain statements."""
    statement = module.statement(event.node)
    steps = [e for t in turn.traces for e in t.events if e.kind is Kind.STEP and not e.through]
    if statement is None or event.through or not steps or not module.alone(statement):
        return None
    step = module.statement(steps[0].node)
    taken = remove(module, statement, "")
    if step is None or taken is None or not isinstance(module.parent(step), ast.If):
        return None
    first, _ = module.lines(step)
    start, _ = module.span(step)
    text = f"{module.text[first:start]}{module.source(statement)}\n"
    edits = (Edit(first, first, text), *taken.edits)
    return Fix("move the clip to just before step()", edits)


def _accelerate(module: Module) -> Iterator[Diagnostic]:
    """Accelerate's clip under `accumulate` without asking for `sync_gradients`."""
    if not module.imports("accelerate") or not _accumulates(module):
        return
    for call in module.calls:
        if tail(call.func) not in ("clip_grad_norm_", "clip_grad_value_"):
            continue
        receiver = dotted(call.func.value) if isinstance(call.func, ast.Attribute) else ""
        if "accelerator" not in receiver.lower():
            continue
        above = list(module.parents(call))
        withs = [n for n in above if isinstance(n, ast.With)]
        inside = any(
            isinstance(i.context_expr, ast.Call) and tail(i.context_expr.func) == "accumulate"
            for n in withs
            for i in n.items
        )
        tests = [ast.unparse(n.test) for n in above if isinstance(n, ast.If)]
        if inside and not any(_COUNTS.search(test) for test in tests):
            yield at(
                call,
                "SG407",
                Severity.WARNING,
                "Accelerate accumulates, and this clips after every micro-batch. Put it under "
                f"`if {receiver}.sync_gradients:`.",
            )


def _accumulates(module: Module) -> bool:
    for call in module.calls:
        if tail(call.func) == "Accelerator":
            steps = argument(call, -1, "gradient_accumulation_steps")
            if steps is not None and number(steps) != 1:
                return True
    return False


def _optax(module: Module) -> Iterator[Diagnostic]:
    """`MultiSteps` inside a chain behind a clip: every micro-batch is clipped by itself."""
    for call in module.calls:
        if not is_optax(module, call, "chain"):
            continue
        links = [link for link in call.args if isinstance(link, ast.Call)]
        clips = [i for i, link in enumerate(links) if tail(link.func).startswith("clip")]
        several = [i for i, link in enumerate(links) if tail(link.func) == "MultiSteps"]
        if clips and several and min(clips) < max(several):
            yield at(
                links[clips[0]],
                "SG407",
                Severity.WARNING,
                "The clip stands outside MultiSteps: every micro-batch is clipped by itself. Put "
                "MultiSteps around the whole chain.",
            )


CHECK = Check(
    "SG407",
    "clipping every micro-batch",
    proves="in some turn of the loop backward and clip run without a step and without clearing, "
    "and the step hangs on a test that counts batches; or both stand in an inner loop",
    assumes="gradients are accumulated on purpose",
    find=find,
    fixable=True,
)
