"""SG604: an optimizer built before one of the model's layers is replaced."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from steadygrad.lint.check import Check, at
from steadygrad.lint.diagnostic import Diagnostic, Fix, Severity
from steadygrad.lint.events import makes_optimizer, owner
from steadygrad.lint.module import Module, argument, dotted
from steadygrad.lint.rewriting import move


def find(module: Module) -> Iterator[Diagnostic]:
    if not module.imports("torch"):
        return
    for call in module.calls:
        if not makes_optimizer(call) or argument(call, 0, "params") is None:
            continue
        statement = module.statement(call)
        parameters = argument(call, 0, "params")
        if not isinstance(statement, ast.Assign) or parameters is None:
            continue
        model = owner(module, parameters)
        if not model.replace(".", "").isidentifier() or _remade(module, statement):
            continue
        late = _replaced_after(module, statement, model)
        if late is not None:
            yield at(
                late,
                "SG604",
                Severity.WARNING,
                f"`{dotted(statement.targets[0])}` was made before this layer: it holds the "
                "replaced layer's parameters, and the new ones are never trained. Make the "
                "optimizer afterwards.",
                _fix(module, statement, late),
            )


def _remade(module: Module, statement: ast.Assign) -> bool:
    """Whether the optimizer is made again, or given parameters, further down."""
    name = dotted(statement.targets[0])
    again = [s for s in module.assignments.get(name, []) if s.lineno > statement.lineno]
    added = f"{name}.add_param_group" in module.text
    return bool(again) or added or not name


def _replaced_after(module: Module, statement: ast.Assign, model: str) -> ast.Assign | None:
    """A plain assignment of a new layer into the model, below the optimizer in its block."""
    for block in _block_of(module, statement):
        for later in block[block.index(statement) + 1 :]:
            if isinstance(later, ast.For | ast.While):
                return None
            if isinstance(later, ast.Assign) and len(later.targets) == 1:
                name = dotted(later.targets[0])
                if name.startswith(f"{model}.") and _makes_a_layer(module, later.value):
                    return later
    return None


def _block_of(module: Module, statement: ast.stmt) -> Iterator[list[ast.stmt]]:
    parent = module.parent(statement)
    for name in ("body", "orelse", "finalbody"):
        block = getattr(parent, name, None)
        if isinstance(block, list) and statement in block:
            yield block


def _makes_a_layer(module: Module, value: ast.expr) -> bool:
    if not isinstance(value, ast.Call):
        return False
    full = module.full_name(value.func)
    return full.startswith("torch.nn.") and full.rpartition(".")[2][:1].isupper()


def _fix(module: Module, statement: ast.Assign, late: ast.Assign) -> Fix | None:
    return move(module, late, statement, "replace the layer before the optimizer is made")


CHECK = Check(
    "SG604",
    "an optimizer older than the model",
    proves="in one block an optimizer is made with model.parameters() and then a torch.nn layer "
    "is assigned to an attribute of that model",
    assumes="the new layer is meant to be trained, and not handed to an optimizer elsewhere",
    find=find,
    fixable=True,
)
