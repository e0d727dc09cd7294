"""SG704: losses added up with their graphs."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from steadygrad.lint.check import Check, at
from steadygrad.lint.diagnostic import Diagnostic, Edit, Fix, Severity
from steadygrad.lint.module import Module, dotted, number, tail


def find(module: Module) -> Iterator[Diagnostic]:
    if not module.imports("torch"):
        return
    for node in module.nodes(ast.AugAssign):
        total, loss = dotted(node.target), dotted(node.value)
        loops = module.loops(node)
        if not (isinstance(node.op, ast.Add) and total and loss and loops):
            continue
        if not _backpropagated(module, loops[0], loss, node) or not _is_sum(module, total, node):
            continue
        yield at(
            node.value,
            "SG704",
            Severity.WARNING,
            f"`{total}` keeps a reference into the graph of every step, and memory grows. Add "
            f"{loss}.item(), or {loss}.detach() to spare the wait.",
            _fix(module, node),
        )


def _backpropagated(module: Module, loop: ast.AST, loss: str, node: ast.AugAssign) -> bool:
    """Whether ``loss.backward()`` stands in the same loop, and the name stays a tensor."""
    inside = [n for n in ast.walk(loop) if isinstance(n, ast.Call)]
    backward = any(
        tail(c.func) == "backward"
        and isinstance(c.func, ast.Attribute)
        and dotted(c.func.value) == loss
        for c in inside
    )
    values = [
        v
        for v in module.values(loss, node)
        if isinstance(v, ast.Call) and tail(v.func) in ("item", "detach", "float")
    ]
    return backward and not values


def _is_sum(module: Module, total: str, node: ast.AugAssign) -> bool:
    """Whether the total starts as a plain number, and is never put into backward or a call."""
    starts = module.values(total, node)
    if not starts or not all(number(v) is not None for v in starts):
        return False
    home = module.function(node)
    for call in module.calls:
        receiver = dotted(call.func.value) if isinstance(call.func, ast.Attribute) else ""
        if receiver == total and tail(call.func) == "backward" and module.function(call) is home:
            return False
    return True


def _fix(module: Module, node: ast.AugAssign) -> Fix:
    _, end = module.span(node.value)
    return Fix("add .item()", (Edit(end, end, ".item()"),))


CHECK = Check(
    "SG704",
    "losses added up with their graphs",
    proves="a total that starts as a number is increased in a loop by a tensor on which "
    "backward() is called there, and the total itself never goes backward",
    assumes="autograd is on where the loss is made",
    find=find,
    fixable=True,
)
