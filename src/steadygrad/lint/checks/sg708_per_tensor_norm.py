"""SG708: Keras' `clipnorm`, which clips every tensor by its own norm."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from steadygrad.lint.check import Check, at
from steadygrad.lint.diagnostic import Diagnostic, Edit, Fix, Severity
from steadygrad.lint.module import Module


def find(module: Module) -> Iterator[Diagnostic]:
    if not (module.imports("keras") or module.imports("tensorflow") or module.imports("tf_keras")):
        return
    for call in module.calls:
        for keyword in call.keywords:
            value = keyword.value
            literal = isinstance(value, ast.Constant) and value.value is not None
            if keyword.arg == "clipnorm" and literal:
                yield at(
                    value,
                    "SG708",
                    Severity.INFO,
                    "clipnorm clips every tensor by its own norm and turns the direction of the "
                    "whole gradient; the usual clipping by norm is global_clipnorm.",
                    _fix(module, keyword),
                )


def _fix(module: Module, keyword: ast.keyword) -> Fix:
    start = module.offset(keyword.lineno, keyword.col_offset)
    return Fix("write global_clipnorm", (Edit(start, start, "global_"),))


CHECK = Check(
    "SG708",
    "clipping tensor by tensor",
    proves="clipnorm is set to a literal",
    assumes="clipping by the norm of the whole gradient was meant",
    find=find,
    fixable=True,
)
