"""SG707: two clipping keywords of one Keras optimizer."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from steadygrad.lint.check import Check, at
from steadygrad.lint.diagnostic import Diagnostic, Severity
from steadygrad.lint.module import Module
from steadygrad.lint.tf import KERAS_KEYWORDS


def find(module: Module) -> Iterator[Diagnostic]:
    for call in module.calls:
        used = [k.arg for k in call.keywords if k.arg in KERAS_KEYWORDS and not _is_none(k.value)]
        if len(used) > 1:
            yield at(
                call,
                "SG707",
                Severity.ERROR,
                f"{' and '.join(str(name) for name in used)} exclude one another: Keras raises "
                "ValueError. Keep one.",
            )


def _is_none(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is None


CHECK = Check(
    "SG707",
    "two clipping keywords",
    proves="one call has two of clipnorm, global_clipnorm and clipvalue, neither of them None",
    assumes="the call makes a Keras 3 optimizer",
    find=find,
)
