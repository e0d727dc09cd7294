"""SG701: the norm is read on the host at every step."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from steadygrad.lint.check import Check, at
from steadygrad.lint.diagnostic import Diagnostic, Severity
from steadygrad.lint.events import CLIPS, Kind
from steadygrad.lint.module import Module, dotted, tail
from steadygrad.lint.traces import turns


def find(module: Module) -> Iterator[Diagnostic]:
    repeated = {
        event.node
        for turn in turns(module)
        if turn.in_loop
        for trace in turn.traces
        for event in trace.events
        if event.kind is Kind.CLIP and not event.guards
    }
    for call in module.calls if repeated else ():
        value = _read(call)
        made = _clip_of(module, value, call) if value is not None else None
        if made in repeated and not _tested(module, call):
            yield at(
                call,
                "SG701",
                Severity.INFO,
                "The norm is read at every step: on a GPU the host waits for it each time. Read "
                "it where you log, or keep the tensors and read them together.",
            )


def _tested(module: Module, call: ast.Call) -> bool:
    """Whether the call stands under a test within its loop, or its function."""
    for above in module.parents(call):
        if isinstance(above, ast.If):
            return True
        if isinstance(above, ast.For | ast.While | ast.FunctionDef):
            return False
    return False


def _read(call: ast.Call) -> ast.expr | None:
    """What a call of ``.item()`` or ``float()`` reads."""
    if isinstance(call.func, ast.Attribute) and call.func.attr == "item" and not call.args:
        return call.func.value
    if isinstance(call.func, ast.Name) and call.func.id == "float" and len(call.args) == 1:
        return call.args[0]
    return None


def _clip_of(module: Module, value: ast.expr, near: ast.Call) -> ast.Call | None:
    """The clip call whose result a value is, directly or through one name."""
    if isinstance(value, ast.Call):
        return value if tail(value.func) in CLIPS else None
    values = module.values(dotted(value), near) if dotted(value) else []
    calls = [v for v in values if isinstance(v, ast.Call) and tail(v.func) in CLIPS]
    above = [c for c in calls if c.lineno <= near.lineno]
    return above[-1] if above and len(calls) == len(values) else None


CHECK = Check(
    "SG701",
    "the norm read at every step",
    proves=".item() or float() of a clip call's result stands in a loop, under no test",
    assumes="the training runs on a device that works ahead of the host",
    find=find,
)
