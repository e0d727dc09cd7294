"""SG504: the norm that is logged is the one after clipping."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from steadygrad.lint.check import Check, at
from steadygrad.lint.diagnostic import Diagnostic, Severity
from steadygrad.lint.events import CLIPS, only_reads
from steadygrad.lint.module import Module, dotted, tail
from steadygrad.lint.tf import TF_CLIPS

_NORMS = ("norm", "vector_norm", "global_norm", "get_total_norm", "get_grad_norm")


def find(module: Module) -> Iterator[Diagnostic]:
    yield from _torch(module)
    yield from _tensorflow(module)


def _torch(module: Module) -> Iterator[Diagnostic]:
    """The clip's own result is thrown away, and the norm is taken again behind it."""
    for call in module.calls:
        statement = module.statement(call)
        thrown_away = isinstance(statement, ast.Expr) and statement.value is call
        if tail(call.func) != "clip_grad_norm_" or not thrown_away or only_reads(call):
            continue
        for later in _following(module, statement):
            reads = _reads_gradients(later)
            if reads is not None:
                yield at(
                    reads,
                    "SG504",
                    Severity.INFO,
                    "This is the norm after clipping, never above the threshold. The clip call "
                    "returns the norm before it: use that.",
                )
                break


def _following(module: Module, statement: ast.stmt | None) -> Iterator[ast.stmt]:
    """The statements of the same block behind one, up to the next clear, step or backward."""
    parent = module.parent(statement) if statement else None
    for block in (getattr(parent, "body", []), getattr(parent, "orelse", [])):
        if isinstance(block, list) and statement in block:
            for later in block[block.index(statement) + 1 :]:
                names = {tail(n.func) for n in ast.walk(later) if isinstance(n, ast.Call)}
                if names & {"zero_grad", "backward", *CLIPS}:
                    return
                yield later


def _reads_gradients(statement: ast.stmt) -> ast.Call | None:
    """A call that takes the norm of ``.grad``."""
    for node in ast.walk(statement):
        if isinstance(node, ast.Call) and tail(node.func) in _NORMS:
            inside = [
                *node.args,
                *([node.func.value] if isinstance(node.func, ast.Attribute) else []),
            ]
            if any(
                isinstance(part, ast.Attribute) and part.attr == "grad"
                for value in inside
                for part in ast.walk(value)
            ):
                return node
    return None


def _tensorflow(module: Module) -> Iterator[Diagnostic]:
    """``grads, _ = tf.clip_by_global_norm(grads, c)`` and then ``tf.linalg.global_norm(grads)``."""
    for call in module.calls:
        if tail(call.func) != "global_norm" or not call.args:
            continue
        name = dotted(call.args[0])
        values = [v for v in module.values(name, call) if v.lineno < call.lineno] if name else []
        pairs = _unpacked(module, name, call)
        last = max([*values, *pairs], key=lambda v: v.lineno, default=None)
        if isinstance(last, ast.Call) and tail(last.func) in TF_CLIPS:
            yield at(
                call,
                "SG504",
                Severity.INFO,
                f"`{name}` is clipped already: this norm is never above the threshold. "
                "clip_by_global_norm returns the norm before clipping as its second value.",
            )


def _unpacked(module: Module, name: str, near: ast.Call) -> list[ast.expr]:
    """What a name was unpacked from before a call, in the same function."""
    home = module.function(near)
    return [
        node.value
        for node in module.nodes(ast.Assign)
        if node.lineno < near.lineno
        and module.function(node) is home
        and isinstance(node.targets[0], ast.Tuple)
        and any(dotted(part) == name for part in node.targets[0].elts)
    ]


CHECK = Check(
    "SG504",
    "the norm after clipping, logged",
    proves="the norm is taken again from gradients that a clip in the same block, or the same "
    "function, has changed",
    assumes="the norm is meant to tell how large gradients are",
    find=find,
)
