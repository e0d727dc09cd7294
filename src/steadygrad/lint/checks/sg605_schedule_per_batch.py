"""SG605: a schedule that counts epochs, stepped at every batch."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from steadygrad.lint.check import Check, at
from steadygrad.lint.diagnostic import Diagnostic, Severity
from steadygrad.lint.module import Loop, Module, argument, dotted, number, tail

_EPOCHS = re.compile(r"^(?!.*(len\(|step|iter|batch|\*)).*epoch", re.IGNORECASE)
_LOADER = re.compile(r"load|batch|dataset|train_dl|train_iter|\bdl\b", re.IGNORECASE)
_EPOCH_LOOP = re.compile(r"epoch", re.IGNORECASE)

_LARGEST_EPOCHS = 200
"""A step size or milestone up to this is taken for a number of epochs."""


def find(module: Module) -> Iterator[Diagnostic]:
    if not module.imports("torch"):
        return
    for call in module.calls:
        if tail(call.func) != "step" or call.args or not isinstance(call.func, ast.Attribute):
            continue
        name = dotted(call.func.value)
        made = module.values(name, call) if name else []
        if len(made) != 1 or not isinstance(made[0], ast.Call):
            continue
        unit = _counts_epochs(made[0])
        if unit and _in_batch_loop(module, call):
            yield at(
                call,
                "SG605",
                Severity.WARNING,
                f"The schedule counts epochs ({unit}) and is stepped at every batch: the learning "
                "rate is gone long before the end. Step it once an epoch, or count batches.",
            )


def _counts_epochs(made: ast.Call) -> str:
    """The argument of a schedule that is a number of epochs; empty where it may be batches."""
    kind = tail(made.func)
    if kind == "CosineAnnealingLR":
        value = argument(made, 1, "T_max")
        text = ast.unparse(value) if value is not None else ""
        return f"T_max={text}" if _EPOCHS.search(text) else ""
    if kind == "StepLR":
        size = number(argument(made, 1, "step_size"))
        gamma = number(argument(made, 2, "gamma")) if argument(made, 2, "gamma") else 0.1
        harsh = gamma is not None and gamma <= 0.5
        return f"step_size={size:g}" if size and size <= _LARGEST_EPOCHS and harsh else ""
    if kind == "MultiStepLR":
        stones = argument(made, 1, "milestones")
        numbers = [number(e) for e in stones.elts] if isinstance(stones, ast.List) else []
        small = bool(numbers) and all(n is not None and n <= _LARGEST_EPOCHS for n in numbers)
        return f"milestones={ast.unparse(stones)}" if small and stones is not None else ""
    return ""


def _in_batch_loop(module: Module, call: ast.Call) -> bool:
    """Inside a loop over a loader that stands inside a loop over epochs, and under no test."""
    for above in module.parents(call):
        if isinstance(above, ast.If):
            return False
        if isinstance(above, ast.For | ast.While):
            break
    loops: list[Loop] = module.loops(call)
    if len(loops) < 2 or not isinstance(loops[0], ast.For) or not isinstance(loops[1], ast.For):
        return False
    inner, outer = ast.unparse(loops[0].iter), ast.unparse(loops[1].target)
    return bool(_LOADER.search(inner) and _EPOCH_LOOP.search(outer))


CHECK = Check(
    "SG605",
    "a schedule in epochs, stepped by batch",
    proves="the schedule's length is named after epochs, or is a literal of at most 200, and its "
    "step() stands in a loop over a loader inside a loop over epochs",
    assumes="an epoch has several batches",
    find=find,
)
