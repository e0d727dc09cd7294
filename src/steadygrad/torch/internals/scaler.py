"""Seeing what a GradScaler does around `step`.

When gradients overflow, a GradScaler does not call the `step` of a non-fused
optimizer at all, so no hook ever hears of it. `GradScaler.step` is therefore observed
for as long as an optimizer is attached, and only then.
"""

from __future__ import annotations

from typing import Any

import torch

from steadygrad.torch.internals import sites
from steadygrad.torch.internals.inlay import Arguments, Visit
from steadygrad.torch.internals.patches import PatchSet

HANDLE = "_steadygrad"
"""The attribute under which an attached optimizer holds its handle."""

_watching = PatchSet(lambda patches: patches.add(sites.SCALER_STEP.listen(_begins)))


def watch(optimizer: torch.optim.Optimizer) -> None:
    """Tell the optimizer's handle of every `GradScaler.step` on it.

    The handle's ``scaler_enters(scale, scaler)`` and ``scaler_leaves()`` are called around it.
    """
    _watching.hold(optimizer)


def unwatch(optimizer: torch.optim.Optimizer) -> None:
    """End what `watch` began; after the last one, `GradScaler` is as before."""
    _watching.release(optimizer)


def unwrap(optimizer: object) -> Any:
    """The optimizer whose `step` does the work, inside wrappers such as Accelerate's."""
    while not _acts_itself(optimizer) and hasattr(optimizer, "optimizer"):
        optimizer = optimizer.optimizer
    return optimizer


def _acts_itself(optimizer: object) -> bool:
    """Whether its step is more than its inner optimizer's: it has groups, not a way to theirs."""
    if hasattr(optimizer, "_optimizer_step_pre_hooks"):
        return True
    return isinstance(optimizer, torch.optim.Optimizer) and "param_groups" in vars(optimizer)


class _Step(Visit):
    """One `GradScaler.step` on an attached optimizer."""

    def __init__(self, arguments: Arguments, handle: Any) -> None:
        super().__init__(arguments)
        self._handle = handle

    def returns(self, result: object) -> object:
        self._handle.scaler_leaves()
        return result


def _begins(arguments: Arguments) -> Visit | None:
    scaler, optimizer = arguments[0], arguments[1]
    handle = getattr(unwrap(optimizer), HANDLE, None)
    scale = scaler._scale if scaler.is_enabled() else None
    if handle is None or scale is None:
        return None
    # the scaler changes its scale in place
    handle.scaler_enters(scale.detach().clone(), scaler)
    return _Step(arguments, handle)
