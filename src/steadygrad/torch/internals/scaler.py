"""Seeing what a GradScaler does around `step`.

When gradients overflow, a GradScaler does not call the `step` of a non-fused
optimizer at all, so no hook ever hears of it. `GradScaler.step` is therefore wrapped
for as long as an optimizer is attached, and only then.
"""

from __future__ import annotations

import functools
import weakref
from typing import Any
from weakref import WeakSet

import torch
from torch.amp.grad_scaler import GradScaler

HANDLE = "_steadygrad"
"""The attribute under which an attached optimizer holds its handle."""

_watched: WeakSet[torch.optim.Optimizer] = WeakSet()
_original: Any = None


def watch(optimizer: torch.optim.Optimizer) -> None:
    """Tell the optimizer's handle of every `GradScaler.step` on it.

    The handle's ``scaler_enters(scale)`` and ``scaler_leaves()`` are called around it.
    """
    global _original
    if _original is None:
        _original = GradScaler.step
        GradScaler.step = _wrap(_original)  # type: ignore[method-assign]
    _watched.add(optimizer)
    weakref.finalize(optimizer, _release).atexit = False


def unwatch(optimizer: torch.optim.Optimizer) -> None:
    """Undo `watch`; with the last one, `GradScaler` is as it was."""
    _watched.discard(optimizer)
    _release()


def _release() -> None:
    global _original
    ours = getattr(GradScaler.step, "__wrapped__", None) is _original
    if _original is not None and not _watched and ours:
        GradScaler.step = _original  # type: ignore[method-assign]
        _original = None


def unwrap(optimizer: Any) -> Any:
    """The optimizer whose `step` does the work, inside wrappers such as Accelerate's."""
    while not hasattr(optimizer, "_optimizer_step_pre_hooks") and hasattr(optimizer, "optimizer"):
        optimizer = optimizer.optimizer
    return optimizer


def _wrap(original: Any) -> Any:
    @functools.wraps(original)
    def step(self: GradScaler, optimizer: Any, *args: Any, **kwargs: Any) -> Any:
        handle = getattr(unwrap(optimizer), HANDLE, None)
        scale = self._scale if self.is_enabled() else None
        if handle is None or scale is None:
            return original(self, optimizer, *args, **kwargs)
        # the scaler changes its scale in place
        handle.scaler_enters(scale.detach().clone())
        result = original(self, optimizer, *args, **kwargs)
        handle.scaler_leaves()
        return result

    return step
