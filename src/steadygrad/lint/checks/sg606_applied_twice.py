"""SG606: softmax before cross-entropy, sigmoid before binary cross-entropy with logits."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from steadygrad.lint.check import TRAINING, Check, at
from steadygrad.lint.diagnostic import Diagnostic, Fix, Severity
from steadygrad.lint.module import Module, dotted, tail
from steadygrad.lint.rewriting import rewrite

_LOSSES = {
    "cross_entropy": ("softmax", "Softmax"),
    "CrossEntropyLoss": ("softmax", "Softmax"),
    "binary_cross_entropy_with_logits": ("sigmoid", "Sigmoid"),
    "BCEWithLogitsLoss": ("sigmoid", "Sigmoid"),
}
"""torch's losses that apply an activation themselves -> that activation's names."""


def find(module: Module) -> Iterator[Diagnostic]:
    if not module.imports("torch"):
        return
    for call in module.calls:
        loss = _loss(module, call)
        if not loss or not call.args:
            continue
        scores = call.args[0]
        if _hard_or_soft_targets(call):
            continue
        place = _activation(module, scores, _LOSSES[loss])
        if place is not None:
            yield at(
                place,
                "SG606",
                Severity.WARNING,
                f"{tail(place.func)} is applied before {loss}, which applies it itself: gradients "
                "shrink and the loss cannot reach 0. Give it the raw scores.",
                _fix(module, place),
            )


def _loss(module: Module, call: ast.Call) -> str:
    """The torch loss that a call computes, by its function or by the criterion's class."""
    full = module.full_name(call.func)
    if full.startswith("torch.nn.functional.") and tail(call.func) in _LOSSES:
        return tail(call.func)
    if isinstance(call.func, ast.Call) and tail(call.func.func) in _LOSSES:
        return tail(call.func.func)
    values = module.values(dotted(call.func), call) if dotted(call.func) else []
    made = {tail(v.func) for v in values if isinstance(v, ast.Call)}
    if len(values) == len(made) == 1 and made <= _LOSSES.keys():
        return made.pop()
    return ""


def _hard_or_soft_targets(call: ast.Call) -> bool:
    """Whether the call is something else than scores against targets."""
    return len(call.args) < 2 and not any(k.arg in ("target", "targets") for k in call.keywords)


def _activation(module: Module, node: ast.expr, names: tuple[str, ...]) -> ast.Call | None:
    """The call of the activation that made a value, followed through one name and one model."""
    if isinstance(node, ast.Call):
        if _applies(module, node, names):
            return node
        return _returned(module, node, names)
    if not isinstance(node, ast.Name):
        return None
    home = module.function(node)
    made = [
        a
        for a in module.assignments.get(node.id, [])
        if module.function(a) is home and a.lineno < node.lineno
    ]
    if not made or made[-1].value is None or _rebound(module, node, made[-1].lineno):
        return None
    last = made[-1].value
    if module.parent(made[-1]) is not module.parent(module.statement(node) or node):
        return None
    if isinstance(last, ast.Call):
        return last if _applies(module, last, names) else _returned(module, last, names)
    return None


def _rebound(module: Module, node: ast.Name, since: int) -> bool:
    """Whether the name is set again between its assignment and its use."""
    return any(
        other.id == node.id
        and isinstance(other.ctx, ast.Store)
        and since < other.lineno < node.lineno
        for other in module.nodes(ast.Name)
    )


def _applies(module: Module, call: ast.Call, names: tuple[str, ...]) -> bool:
    """Whether a call is the activation: torch's function, a method, or a layer that is called."""
    if isinstance(call.func, ast.Call):
        return module.full_name(call.func.func) == f"torch.nn.{names[1]}"
    if tail(call.func) == names[0]:
        full = module.full_name(call.func)
        return full.startswith("torch.") or isinstance(call.func, ast.Attribute)
    values = module.values(dotted(call.func), call) if dotted(call.func) else []
    return (
        len(values) == 1
        and isinstance(values[0], ast.Call)
        and (module.full_name(values[0].func) == f"torch.nn.{names[1]}")
    )


def _returned(module: Module, call: ast.Call, names: tuple[str, ...]) -> ast.Call | None:
    """The activation that ends the forward of the model that a call runs, or its Sequential."""
    values = module.values(dotted(call.func), call) if dotted(call.func) else []
    if len(values) != 1 or not isinstance(values[0], ast.Call):
        return None
    made = values[0]
    if tail(made.func) == "Sequential" and made.args:
        last = made.args[-1]
        ends = isinstance(last, ast.Call) and module.full_name(last.func) == f"torch.nn.{names[1]}"
        return last if ends and isinstance(last, ast.Call) else None
    for home in module.nodes(ast.ClassDef):
        if home.name == dotted(made.func) and any(tail(b) == "Module" for b in home.bases):
            return _forward_ends_with(module, home, names)
    return None


def _forward_ends_with(
    module: Module, home: ast.ClassDef, names: tuple[str, ...]
) -> ast.Call | None:
    forward = next(
        (n for n in home.body if isinstance(n, ast.FunctionDef) and n.name == "forward"), None
    )
    returns = [n for n in ast.walk(forward) if isinstance(n, ast.Return)] if forward else []
    if len(returns) != 1 or returns[0].value is None:
        return None
    value = returns[0].value
    if isinstance(value, ast.Call):
        return value if _applies(module, value, names) else None
    return _activation(module, value, names) if isinstance(value, ast.Name) else None


def _fix(module: Module, place: ast.Call) -> Fix | None:
    """Put what the activation was given in its place, where it is a function's first argument."""
    full = module.full_name(place.func)
    if isinstance(place.func, ast.Call) or full.startswith("torch."):
        inner = place.args[0] if place.args else None
        is_layer = full.startswith("torch.nn.") and not full.startswith("torch.nn.functional.")
        if inner is not None and not is_layer:
            return rewrite(module, place, module.source(inner), "pass the raw scores")
        return None
    if isinstance(place.func, ast.Attribute) and tail(place.func) in ("softmax", "sigmoid"):
        return rewrite(module, place, module.source(place.func.value), "pass the raw scores")
    return None


CHECK = Check(
    "SG606",
    "an activation applied twice",
    proves="what is handed to the loss is the result of the activation, by the same expression, "
    "by the last assignment in the same block, or by the only return of the model's forward",
    assumes="nothing",
    find=find,
    fixable=True,
    words=TRAINING + "|cross_entropy|CrossEntropyLoss|with_logits|BCEWithLogits",
)
