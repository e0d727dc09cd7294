"""SG706: a threshold of 0 or below."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator

from steadygrad.lint.check import Check, at
from steadygrad.lint.diagnostic import Diagnostic, Severity
from steadygrad.lint.events import CLIPS, clip_limit
from steadygrad.lint.module import Module, argument, number, tail
from steadygrad.lint.tf import KERAS_KEYWORDS, is_optax

_Does = Callable[[float], str]
"""What a threshold of that value does, as the end of a sentence."""


def find(module: Module) -> Iterator[Diagnostic]:
    for call in module.calls:
        for limit, does in _limits(module, call):
            value = number(limit)
            if value is not None and value <= 0:
                yield at(
                    limit,
                    "SG706",
                    Severity.WARNING,
                    f"A threshold of {value:g} {does(value)}. Use a number above 0, or leave the "
                    "clip out.",
                )


def _limits(module: Module, call: ast.Call) -> Iterator[tuple[ast.expr, _Does]]:
    limit = clip_limit(call) if tail(call.func) in CLIPS else None
    if limit is not None:
        yield limit, _torch
    for keyword in KERAS_KEYWORDS:
        value = argument(call, -1, keyword)
        if value is not None and tail(call.func)[:1].isupper():
            yield value, _keras
    if is_optax(module, call, "clip_by_global_norm", "clip", "clip_by_block_rms"):
        value = call.args[0] if call.args else None
        if value is not None:
            yield value, _optax


def _torch(value: float) -> str:
    return "makes every gradient 0" if value == 0 else "reverses the gradients: the loss goes up"


def _keras(value: float) -> str:
    return "switches clipping off without a word"


def _optax(value: float) -> str:
    return "makes every update 0" if value == 0 else "reverses the updates: the loss goes up"


CHECK = Check(
    "SG706",
    "a threshold of 0 or below",
    proves="the threshold is written as a number of 0 or below",
    assumes="nothing",
    find=find,
)
