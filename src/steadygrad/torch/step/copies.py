"""Noticing optimizers that were copied or unpickled from an attached one.

torch drops hooks when it copies an optimizer, so a copy would silently not clip. The
attached optimizer puts a mark into what a copy is made from, and a hook on every
optimizer's step warns at the first step of one that bears it.
"""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

from steadygrad.errors import SteadyGradWarning
from steadygrad.torch.internals.warn import warn_user

MARK = "_steadygrad_copied"


def mark_copies(optimizer: torch.optim.Optimizer) -> None:
    """Have copies and pickles of this optimizer bear the mark."""
    getstate = type(optimizer).__getstate__
    held = weakref.ref(optimizer)  # it is kept in the optimizer's own dict

    def marked() -> Any:
        state = getstate(held())  # type: ignore[arg-type]
        return {**state, MARK: True} if isinstance(state, dict) else state

    optimizer.__getstate__ = marked  # type: ignore[method-assign]


def unmark_copies(optimizer: torch.optim.Optimizer) -> None:
    """Undo `mark_copies`."""
    optimizer.__dict__.pop("__getstate__", None)


def _warn_of_copy(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
    if optimizer.__dict__.pop(MARK, False):
        warn_user(
            f"this {type(optimizer).__name__} is a copy of an optimizer that steadygrad was "
            "attached to; copies are not attached: nothing is clipped or recorded here. Type "
            "steadygrad.torch.attach(optimizer, ...) on the copy",
            SteadyGradWarning,
        )


register_optimizer_step_pre_hook(_warn_of_copy)
