"""Handing scaling and skipping to a fused optimizer, which does them inside its own pass.

Fused optimizers of torch divide gradients by ``optimizer.grad_scale`` and drop the step
where ``optimizer.found_inf`` is 1. On a CPU a coefficient is handed over, which saves
one read of the gradients. On a GPU it is not: there the scaling kernel returns at once where
nothing is clipped, while the fused step would write every gradient back; but skipping is,
since deciding it on the host would stop the host.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import attrgetter
from typing import Any

import torch

from steadygrad.torch.gradients.pieces import share_memory

LARGEST = 3e38
"""What ``grad_scale`` may be: float32 holds no more."""

_ABSENT = object()
_DTYPE = attrgetter("dtype")


class Folding:
    """What one optimizer was handed for one step.

    Attributes:
        handed: the optimizer, the attribute's name, and what stood there before.
    """

    def __init__(self) -> None:
        self.handed: list[tuple[torch.optim.Optimizer, str, object]] = []

    def scale(
        self, optimizer: torch.optim.Optimizer, grads: Sequence[torch.Tensor], coef: Any
    ) -> bool:
        """Hand over a coefficient under 1.

        Args:
            optimizer: whose step is about to run.
            grads: its gradients.
            coef: 0-d, NumPy; a coefficient on a device is not handed over.

        Returns:
            False where that would not be exact: scale in place instead.
        """
        if isinstance(coef, torch.Tensor) or not _all_fused(optimizer):
            return False
        if torch.float64 in set(map(_DTYPE, grads)) or share_memory(grads):
            return False
        carried = getattr(optimizer, "grad_scale", None)
        scale = 1.0 if carried is None else float(carried)
        if scale > LARGEST * float(coef):
            return False
        divisor = torch.full((), scale / float(coef), dtype=torch.float32)
        self._hand(optimizer, "grad_scale", divisor)
        return True

    def skip(self, optimizer: torch.optim.Optimizer, flag: torch.Tensor) -> bool:
        """Hand over whether to skip, a 0-d bool on a device.

        Returns:
            False where the optimizer cannot skip whole by itself: read the flag instead.
        """
        if flag.device.type == "cpu" or not _all_fused(optimizer) or not _started(optimizer):
            return False
        as_float = flag.to(torch.float32)
        carried = getattr(optimizer, "found_inf", None)
        merged = (
            as_float if carried is None else torch.maximum(as_float, carried.to(as_float.device))
        )
        self._hand(optimizer, "found_inf", merged)
        return True

    def take_back(self) -> None:
        """Restore what stood there; also after a step that raised."""
        while self.handed:
            optimizer, name, value = self.handed.pop()
            if value is not _ABSENT:
                setattr(optimizer, name, value)
            elif hasattr(optimizer, name):
                delattr(optimizer, name)

    def _hand(self, optimizer: torch.optim.Optimizer, name: str, value: torch.Tensor) -> None:
        self.handed.append((optimizer, name, getattr(optimizer, name, _ABSENT)))
        setattr(optimizer, name, value)


def _all_fused(optimizer: torch.optim.Optimizer) -> bool:
    """Every group, at this moment: a loaded state or a copy may have changed it."""
    supported = getattr(optimizer, "_step_supports_amp_scaling", False)
    stock = type(optimizer).__module__.startswith("torch.optim.")
    return bool(supported and stock) and all(g.get("fused") for g in optimizer.param_groups)


def _started(optimizer: torch.optim.Optimizer) -> bool:
    """Whether state exists: in its first step, a fused optimizer makes it before it skips."""
    groups = optimizer.param_groups
    if isinstance(optimizer, torch.optim.SGD) and not any(g["momentum"] for g in groups):
        return True
    params = [p for g in groups for p in g["params"] if p.grad is not None]
    return all(optimizer.state.get(p) for p in params)
