"""SG701: the norm is read on the host at every step."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from steadygrad.lint.check import Check, at
from steadygrad.lint.diagnostic import Diagnostic, Severity
from steadygrad.lint.events import CLIPS
from steadygrad.lint.module import Module, dotted, tail


def find(module: Module) -> Iterator[Diagnostic]:
    if not any(f"{name}(" in module.text for name in CLIPS):
        return
    for call in module.calls:
        value = _read(call)
        if value is None or not _is_norm(module, value, call):
            continue
        loops = module.loops(call)
        inside = list(module.parents(call))
        tests = (
            [n for n in inside[: inside.index(loops[0])] if isinstance(n, ast.If)] if loops else []
        )
        if loops and not tests:
            yield at(
                call,
                "SG701",
                Severity.INFO,
                "The norm is read at every step: on a GPU the host waits for it each time. Read "
                "it where you log, or keep the tensors and read them together.",
            )


def _read(call: ast.Call) -> ast.expr | None:
    """What a call of ``.item()`` or ``float()`` reads."""
    if isinstance(call.func, ast.Attribute) and call.func.attr == "item" and not call.args:
        return call.func.value
    if isinstance(call.func, ast.Name) and call.func.id == "float" and len(call.args) == 1:
        return call.args[0]
    return None


def _is_norm(module: Module, value: ast.expr, near: ast.AST) -> bool:
    if isinstance(value, ast.Call):
        return tail(value.func) in CLIPS
    values = module.values(dotted(value), near) if dotted(value) else []
    return bool(values) and all(isinstance(v, ast.Call) and tail(v.func) in CLIPS for v in values)


CHECK = Check(
    "SG701",
    "the norm read at every step",
    proves=".item() or float() of a clip call's result stands in a loop, under no test",
    assumes="the training runs on a device that works ahead of the host",
    find=find,
)
