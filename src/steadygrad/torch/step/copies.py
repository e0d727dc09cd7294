"""A hook on every optimizer's step: for copies of an attached one, and for trials.

torch drops hooks when it copies an optimizer, so a copy would silently not clip. The
attached optimizer puts a mark into what a copy is made from, and the hook warns at the
first step of one that bears it. While copies of an optimizer are tried out, it lets no other
optimizer step. It stands from the start: torch may be going through its hooks during a trial.
"""

from __future__ import annotations

import contextlib
import functools
import weakref
from typing import Any

import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

from steadygrad.errors import SteadyGradWarning
from steadygrad.torch.internals.quiet import CallTerms, quiet_call
from steadygrad.torch.internals.scaler import HANDLE
from steadygrad.torch.internals.trying import NOBODY_TRIES, is_trying
from steadygrad.torch.internals.warn import warn_user
from steadygrad.torch.step.inner import is_stand_in

MARK = "_steadygrad_copied"
_OURS = ("__getstate__", HANDLE)


class StepOfAnother(Exception):
    """Where copies are tried out, a copy's step called an optimizer that is not among them."""


class UncopiedHook(functools.partial[Any]):
    """A hook of one optimizer: in a copy or pickle of that, a function that does nothing.

    torch leaves hooks out of what it copies, but a class with a ``__getstate__`` of its own
    may hand over all its attributes. What stands in the hook's place is of the standard
    library, so that a pickle is read where steadygrad is not installed.
    """

    def __reduce__(self) -> Any:
        return getattr, (contextlib.nullcontext(), "__exit__")


def mark_copies(optimizer: torch.optim.Optimizer) -> None:
    """Have copies and pickles of this optimizer bear the mark."""
    getstate = type(optimizer).__getstate__
    reference = weakref.ref(optimizer)  # it is kept in the optimizer's own dict

    def marked() -> Any:
        state = getstate(reference())  # type: ignore[arg-type]
        if not isinstance(state, dict):
            return state
        own = {key: value for key, value in state.items() if key not in _OURS}
        return {**own, MARK: True}

    optimizer.__getstate__ = marked  # type: ignore[method-assign]


def unmark_copies(optimizer: torch.optim.Optimizer) -> None:
    """Undo `mark_copies`."""
    optimizer.__dict__.pop("__getstate__", None)


MOST_MET = 8

_met: tuple[weakref.ref[torch.optim.Optimizer], ...] = ()
"""Optimizers that bear no mark, the last ones that stepped; another tuple whenever one comes, for
threads step at once."""


def _before_any_step(optimizer: torch.optim.Optimizer, args: object, kwargs: object) -> None:
    global _met
    if is_trying() and not is_stand_in(optimizer):
        raise StepOfAnother
    if optimizer.__dict__.pop(MARK, False):
        warn_user(
            f"this {type(optimizer).__name__} is a copy of an optimizer that steadygrad was "
            "attached to; copies are not attached: nothing is clipped or recorded here. Type "
            "steadygrad.torch.attach(optimizer, ...) on the copy",
            SteadyGradWarning,
        )
    if not any(each() is optimizer for each in _met):
        _met = (*_met[1 - MOST_MET :], weakref.ref(optimizer))


def _quiet() -> CallTerms:
    return CallTerms(optimizers=_met, empty=NOBODY_TRIES)


def _raise(error: Exception) -> None:
    raise error


register_optimizer_step_pre_hook(quiet_call(_before_any_step, _quiet, _raise))
