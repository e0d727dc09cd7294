"""SG408: clipping that leaves out part of what the optimizer moves, or clips another model."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from steadygrad.lint.check import Check, at
from steadygrad.lint.diagnostic import Diagnostic, Severity
from steadygrad.lint.events import Kind, LoopEvent, makes_optimizer, only_reads
from steadygrad.lint.module import Module, argument, dotted
from steadygrad.lint.traces import Trace, turns


def find(module: Module) -> Iterator[Diagnostic]:
    seen: set[ast.AST] = set()
    for turn in turns(module):
        owners = {
            step: model
            for trace in turn.traces
            for event in trace.events
            if event.kind is Kind.STEP and (step := event.subject)
            if (model := _model_of(module, step, event.node))
        }
        for trace in turn.traces:
            for event in trace.events:
                if event.kind is not Kind.CLIP or event.node in seen or only_reads(event.call):
                    continue
                diagnostic = _judge(module, trace, event, owners)
                if diagnostic:
                    seen.add(event.node)
                    yield diagnostic


def _judge(
    module: Module, trace: Trace, event: LoopEvent, owners: dict[str, str]
) -> Diagnostic | None:
    """What is wrong with a clip, where every step of the trace has a model that is certain."""
    clipped = event.subject
    steps = {e.subject for e in trace.events if e.kind is Kind.STEP}
    clips = {e.subject for e in trace.events if e.kind is Kind.CLIP}
    if not steps or not steps <= owners.keys() or event.through or not _is_dotted(clipped):
        return None
    models = {owners[step] for step in steps}
    if any(_holds(clipped, model) for model in models):
        return None
    whole = next((model for model in models if _holds(model, clipped)), "")
    if whole and len(clips) == 1:
        message = f"Only `{clipped}` is clipped, and the optimizer moves all of `{whole}`."
        return at(event.call, "SG408", Severity.WARNING, message)
    model = next(iter(models))
    if whole or len(models) > 1 or not _apart(module, clipped, model, event.node):
        return None
    message = f"`{clipped}` is clipped, and the optimizer that steps here moves `{model}`."
    return at(event.call, "SG408", Severity.WARNING, message)


def _holds(model: str, part: str) -> bool:
    """Whether one dotted name is the other, or a part of it."""
    return part == model or part.startswith(f"{model}.")


def _is_dotted(text: str) -> bool:
    return all(word.isidentifier() for word in text.split("."))


def _apart(module: Module, one: str, other: str, near: ast.AST) -> bool:
    """Whether two names are bound in this scope, each once, to calls of their own."""
    values = [module.values(name, near) for name in (one, other)]
    return all(len(v) == 1 and isinstance(v[0], ast.Call) for v in values) and not any(
        dotted(argument) in (one, other)
        for value in values
        if isinstance(value[0], ast.Call)
        for argument in value[0].args
    )


def _model_of(module: Module, optimizer: str, near: ast.AST) -> str:
    """The one model whose parameters an optimizer of this scope was made with; empty if unsure."""
    home = module.function(near)
    made = [
        s.value
        for s in module.assignments.get(optimizer, [])
        if "." in optimizer or module.function(s) is home
    ]
    if len(made) != 1 or not isinstance(made[0], ast.Call) or not makes_optimizer(made[0]):
        return ""
    parameters = argument(made[0], 0, "params")
    if (
        isinstance(parameters, ast.Call)
        and isinstance(parameters.func, ast.Attribute)
        and parameters.func.attr == "parameters"
        and not parameters.args
        and module.class_of(made[0]) is module.class_of(near)
    ):
        return dotted(parameters.func.value)
    return ""


CHECK = Check(
    "SG408",
    "clipping a part, or another model",
    proves="the optimizer was made once in the same function or class, with model.parameters(), "
    "and the clip is given a part of that model, or another model made beside it",
    assumes="what is left out was not left out on purpose",
    find=find,
)
