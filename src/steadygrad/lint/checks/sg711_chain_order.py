"""SG711: clipping behind the optimizer in an optax chain."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from steadygrad.lint.check import Check, at
from steadygrad.lint.diagnostic import Diagnostic, Edit, Fix, Severity
from steadygrad.lint.module import Module
from steadygrad.lint.tf import is_optax

_CLIPS = ("clip", "clip_by_global_norm", "clip_by_block_rms", "adaptive_grad_clip")
_OPTIMIZERS = frozenset(
    [
        "adam",
        "adamw",
        "adamax",
        "adamaxw",
        "adabelief",
        "adadelta",
        "adafactor",
        "adagrad",
        "adan",
        "amsgrad",
        "fromage",
        "lamb",
        "lars",
        "lion",
        "nadam",
        "nadamw",
        "noisy_sgd",
        "novograd",
        "radam",
        "rmsprop",
        "sgd",
        "sm3",
        "yogi",
        "scale_by_adam",
        "scale_by_rms",
        "scale_by_lion",
        "scale_by_amsgrad",
    ]
)


def find(module: Module) -> Iterator[Diagnostic]:
    for call in module.calls:
        if not is_optax(module, call, "chain"):
            continue
        behind: ast.expr | None = None
        for link in call.args:
            if not isinstance(link, ast.Call):
                continue
            if is_optax(module, link, *_OPTIMIZERS):
                behind = behind or link
            elif behind is not None and is_optax(module, link, *_CLIPS):
                yield at(
                    link,
                    "SG711",
                    Severity.WARNING,
                    f"The clip stands behind {ast.unparse(behind.func)}: it clips the update, and "  # type: ignore[attr-defined]
                    "gradients reach the optimizer's moments unclipped. Put it first.",
                    _fix(module, behind, link),
                )


def _fix(module: Module, optimizer: ast.expr, clip: ast.Call) -> Fix:
    one, other = module.span(optimizer), module.span(clip)
    edits = (Edit(*one, module.source(clip)), Edit(*other, module.source(optimizer)))
    return Fix("put the clip first", edits)


CHECK = Check(
    "SG711",
    "a clip behind the optimizer",
    proves="in optax.chain a clip stands behind an optimizer",
    assumes="the gradient was meant to be clipped, not the update",
    find=find,
    fixable=True,
)
