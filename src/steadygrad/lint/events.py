"""What happens in a training step, as a source spells it: backward, clip, unscale, step, clear."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from enum import Enum

from steadygrad.lint.module import Module, argument, dotted, number, tail

CLIPS = {
    "clip_grad_norm_": "norm",
    "clip_grad_norm": "norm",
    "clip_grad_value_": "value",
    "clip_gradients": "norm",
    "dispatch_clip_grad": "norm",
    "adaptive_clip_grad": "agc",
}
"""Name of a function or method that clips what an optimizer will read -> by what."""

_OPTIMIZERS = frozenset(
    [
        "SGD",
        "Adam",
        "AdamW",
        "RMSprop",
        "Adagrad",
        "Adadelta",
        "Adamax",
        "NAdam",
        "RAdam",
        "LBFGS",
        "Rprop",
        "ASGD",
        "SparseAdam",
        "Adafactor",
        "Lion",
        "Lamb",
        "LAMB",
        "LARS",
        "Muon",
        "AdamW8bit",
        "Adam8bit",
        "SGD8bit",
        "Lion8bit",
        "PagedAdamW8bit",
        "DAdaptAdam",
        "Prodigy",
        "FusedAdam",
        "FusedLAMB",
        "FusedSGD",
        "DeepSpeedCPUAdam",
        "AdaBelief",
        "Ranger",
        "ScheduledOptim",
        "ZeroRedundancyOptimizer",
        "AdamWScheduleFree",
        "SGDScheduleFree",
    ]
)
"""Classes whose objects have a `step` that moves weights."""

_IN_PLACE = ("mul_", "div_", "add_", "sub_", "copy_", "clamp_", "zero_", "fill_", "mul", "clip_")


class Kind(Enum):
    """One act of a training step."""

    BACKWARD = "backward"
    CLIP = "clip"
    UNSCALE = "unscale"
    STEP = "step"
    CLEAR = "clear"
    WRITE = "write"


@dataclass(frozen=True)
class LoopEvent:
    """One act, where it stands and on whom.

    Attributes:
        kind: which act.
        node: the call or the assignment.
        subject: source text of the one acted on: the optimizer that is stepped, unscaled or
            cleared, the owner of the parameters that are clipped; empty where nobody can tell.
        scaled: a backward on a scaled loss, or a step through a gradient scaler.
        depth: loops entered on the way to it, within the part of the source that is looked at.
        guards: the tests under which it runs, as text.
        through: the call in the part looked at that leads to it, where it stands in a helper.
    """

    kind: Kind
    node: ast.Call | ast.stmt
    subject: str = ""
    scaled: bool = False
    depth: int = 0
    guards: tuple[str, ...] = ()
    through: ast.Call | None = None

    @property
    def call(self) -> ast.Call:
        """The node of an event that is a call: every kind but a write may be."""
        assert isinstance(self.node, ast.Call)
        return self.node


def event_of(module: Module, call: ast.Call) -> LoopEvent | None:
    """The act that a call is, if it is one.

    Args:
        module: the source.
        call: the call.

    Returns:
        The event, as if it stood alone.
    """
    name = tail(call.func)
    if name in ("backward", "manual_backward"):
        return LoopEvent(Kind.BACKWARD, call, scaled=_is_scaled(module, call))
    if name in CLIPS and (call.args or call.keywords):
        return LoopEvent(Kind.CLIP, call, clip_owner(module, call))
    if name in ("unscale_", "unscale_gradients"):
        return LoopEvent(Kind.UNSCALE, call, ast.unparse(call.args[0]) if call.args else "")
    if isinstance(call.func, ast.Attribute):
        return _method(module, call, call.func)
    return None


def _method(module: Module, call: ast.Call, function: ast.Attribute) -> LoopEvent | None:
    receiver = function.value
    if function.attr == "zero_grad":
        return LoopEvent(Kind.CLEAR, call, ast.unparse(receiver))
    if function.attr == "step":
        if call.args and is_scaler(module, receiver):
            return LoopEvent(Kind.STEP, call, ast.unparse(call.args[0]), scaled=True)
        if is_optimizer(module, receiver):
            return LoopEvent(Kind.STEP, call, ast.unparse(receiver))
    if function.attr in _IN_PLACE and "grad" in dotted(receiver).split("."):
        return LoopEvent(Kind.WRITE, call, dotted(receiver))
    return None


def write_of(statement: ast.stmt) -> LoopEvent | None:
    """The event of a statement that writes into ``.grad``."""
    if isinstance(statement, ast.Assign):
        targets = statement.targets
    elif isinstance(statement, ast.AugAssign):
        targets = [statement.target]
    else:
        return None
    for target in targets:
        if isinstance(target, ast.Attribute) and "grad" in dotted_parts(target):
            return LoopEvent(Kind.WRITE, statement, ast.unparse(target))
    return None


def dotted_parts(node: ast.expr) -> set[str]:
    """The attribute names on the way to a value, through calls and indices too."""
    parts = set()
    while not isinstance(node, ast.Name):
        if isinstance(node, ast.Attribute):
            parts.add(node.attr)
            node = node.value
        elif isinstance(node, ast.Subscript):
            node = node.value
        elif isinstance(node, ast.Call):
            node = node.func
        else:
            break
    return parts


def _is_scaled(module: Module, call: ast.Call) -> bool:
    loss = call.func.value if isinstance(call.func, ast.Attribute) else None
    if isinstance(loss, ast.Name):
        values = module.values(loss.id, call)
        loss = values[-1] if values else None
    return (
        isinstance(loss, ast.Call)
        and isinstance(loss.func, ast.Attribute)
        and loss.func.attr == "scale"
        and is_scaler(module, loss.func.value)
    )


def is_scaler(module: Module, node: ast.expr) -> bool:
    """Whether a value is a gradient scaler, by its name or by what was assigned to it."""
    name = _last_name(node).lower()
    if "scaler" in name:
        return True
    return any(_made_by(value) == "GradScaler" for value in module.values(dotted(node), node))


def is_optimizer(module: Module, node: ast.expr) -> bool:
    """Whether a value is a PyTorch optimizer, by its name or by what was assigned to it."""
    name = _last_name(node).lower()
    if any(word in name for word in ("sched", "scaler", "env", "warmup", "adapt", "copt")):
        return False
    if "optim" in name or name == "opt" or name.startswith("opt_") or name.endswith("_opt"):
        return True
    return any(_made_by(value) in _OPTIMIZERS for value in module.values(dotted(node), node))


def _last_name(node: ast.expr) -> str:
    while isinstance(node, ast.Subscript | ast.Call):
        node = node.value if isinstance(node, ast.Subscript) else node.func
    return tail(node)


def _made_by(value: ast.expr) -> str:
    return tail(value.func) if isinstance(value, ast.Call) else ""


def makes_optimizer(call: ast.Call) -> bool:
    """Whether a call makes a PyTorch optimizer."""
    return tail(call.func) in _OPTIMIZERS


def clipped_expression(call: ast.Call) -> ast.expr | None:
    """The argument of a clip call that says what is clipped."""
    for name in ("parameters", "tensors", "model"):
        value = argument(call, -1, name)
        if value is not None:
            return value
    return argument(call, 0, "parameters")


def clip_limit(call: ast.Call) -> ast.expr | None:
    """The argument of a clip call that is its threshold."""
    for name in ("max_norm", "clip_value", "max_val", "clip_val", "value"):
        value = argument(call, -1, name)
        if value is not None:
            return value
    return argument(call, 1, "max_norm")


def only_reads(call: ast.Call) -> bool:
    """Whether a clip call has an infinite threshold: it reads the norm and changes nothing."""
    return number(clip_limit(call)) == float("inf")


def clip_owner(module: Module, call: ast.Call) -> str:
    """Source text of the model whose parameters are clipped; empty where it can't be told."""
    value = clipped_expression(call)
    return owner(module, value) if value is not None else ""


def owner(module: Module, node: ast.expr, hops: int = 2) -> str:
    """The model that an expression of parameters belongs to.

    Args:
        module: the source.
        node: for example ``model.parameters()``, or a name assigned from it.
        hops: how many names are followed.

    Returns:
        Its text, e.g. ``model``; for anything else the expression's own text.
    """
    if isinstance(node, ast.Call):
        if isinstance(node.func, ast.Attribute) and node.func.attr == "parameters":
            return ast.unparse(node.func.value)
        if tail(node.func) in ("filter", "list", "tuple") and node.args:
            return owner(module, node.args[-1], hops)
    if isinstance(node, ast.ListComp | ast.GeneratorExp) and len(node.generators) == 1:
        return owner(module, node.generators[0].iter, hops)
    if isinstance(node, ast.Name | ast.Attribute) and hops:
        values = module.values(dotted(node), node)
        if len(values) == 1 and isinstance(values[0], ast.Call | ast.ListComp):
            return owner(module, values[0], hops - 1)
    return ast.unparse(node)
