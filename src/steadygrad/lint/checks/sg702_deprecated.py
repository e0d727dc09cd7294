"""SG702: the deprecated `clip_grad_norm`."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from steadygrad.lint.check import Check, at
from steadygrad.lint.diagnostic import Diagnostic, Edit, Fix, Severity
from steadygrad.lint.module import Module, tail


def find(module: Module) -> Iterator[Diagnostic]:
    for call in module.calls:
        full = module.full_name(call.func)
        if tail(call.func) == "clip_grad_norm" and full.startswith("torch.nn.utils."):
            yield at(
                call.func,
                "SG702",
                Severity.WARNING,
                "clip_grad_norm is deprecated, and clips in place as clip_grad_norm_ does. Use "
                "that.",
                _fix(module, call.func),
            )


def _fix(module: Module, name: ast.expr) -> Fix | None:
    if not isinstance(name, ast.Attribute):
        return None
    _, end = module.span(name)
    return Fix("write clip_grad_norm_", (Edit(end, end, "_"),))


CHECK = Check(
    "SG702",
    "the deprecated clip_grad_norm",
    proves="torch.nn.utils.clip_grad_norm is called",
    assumes="nothing",
    find=find,
    fixable=True,
)
