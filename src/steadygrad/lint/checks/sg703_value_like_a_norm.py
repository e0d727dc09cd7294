"""SG703: clipping by value with a threshold that is usual for norms."""

from __future__ import annotations

from collections.abc import Iterator

from steadygrad.lint.check import Check, at
from steadygrad.lint.diagnostic import Diagnostic, Severity
from steadygrad.lint.events import clip_limit
from steadygrad.lint.module import Module, number, tail


def find(module: Module) -> Iterator[Diagnostic]:
    for call in module.calls:
        limit = number(clip_limit(call)) if tail(call.func) == "clip_grad_value_" else None
        if limit is not None and 1.0 <= limit < float("inf"):
            yield at(
                call,
                "SG703",
                Severity.INFO,
                f"clip_grad_value_ clamps single elements, and {limit:g} is a usual threshold for "
                "the norm of all of them: it rarely acts, and turns the direction where it does. "
                "Was clip_grad_norm_ meant?",
            )


CHECK = Check(
    "SG703",
    "a norm's threshold for values",
    proves="clip_grad_value_ has a literal threshold of 1 or more",
    assumes="single elements of gradients are far below 1",
    find=find,
)
