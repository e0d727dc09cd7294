"""SG709: clipped gradients that are thrown away."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from steadygrad.lint.check import Check, at
from steadygrad.lint.diagnostic import Diagnostic, Severity
from steadygrad.lint.module import Module, dotted, tail
from steadygrad.lint.tf import applied_names, clipped_name


def find(module: Module) -> Iterator[Diagnostic]:
    if not module.imports("tensorflow"):
        return
    for call in module.calls:
        full = module.full_name(call.func)
        if tail(call.func) != "clip_by_global_norm" or not full.startswith("tensorflow"):
            continue
        statement = module.statement(call)
        if isinstance(statement, ast.Expr) and statement.value is call:
            yield _diagnostic(call, "the result of this call is not used")
        elif isinstance(statement, ast.Assign) and _raw_are_applied(module, call, statement):
            name = clipped_name(module, call)
            yield _diagnostic(call, f"apply_gradients() is given `{name}`, as before the clip")


def _diagnostic(call: ast.Call, why: str) -> Diagnostic:
    return at(
        call,
        "SG709",
        Severity.ERROR,
        f"clip_by_global_norm returns new tensors and changes none, and {why}: nothing is "
        "clipped. Apply what it returns.",
    )


def _raw_are_applied(module: Module, call: ast.Call, statement: ast.Assign) -> bool:
    """Whether the unclipped gradients are applied below, and the clipped ones used nowhere."""
    raw = clipped_name(module, call)
    target = statement.targets[0]
    first = target.elts[0] if isinstance(target, ast.Tuple) and target.elts else target
    clipped = dotted(first)
    if not raw or not clipped or clipped == raw:
        return False
    home = module.function(call)
    uses = [
        node
        for node in module.nodes(ast.Name)
        if node.id == clipped and isinstance(node.ctx, ast.Load) and module.function(node) is home
    ]
    applied = [
        c
        for c in module.calls
        if module.function(c) is home and c.lineno > call.lineno and raw in applied_names(c)
    ]
    return bool(applied) and not uses


CHECK = Check(
    "SG709",
    "clipped gradients thrown away",
    proves="the result of tf.clip_by_global_norm is not bound, or is used nowhere while the list "
    "that went in is applied below",
    assumes="nothing",
    find=find,
)
