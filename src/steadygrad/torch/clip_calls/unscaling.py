"""`GradScaler.unscale_`: it divides gradients that a clip call may have read, or will read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from steadygrad.torch.clip_calls.clips import Unscaling
from steadygrad.torch.gradients.parameters import parameters_of
from steadygrad.torch.internals import scaler
from steadygrad.torch.internals.inlay import Arguments, Visit


class UnscaleVisit(Visit):
    """One `GradScaler.unscale_`.

    Args:
        arguments: the scaler and the optimizer.
        unscaling: what `ClipLog.before_unscale` gave; None where it could not look.
        over: told of it when the function has returned.
    """

    def __init__(
        self,
        arguments: Arguments,
        unscaling: Unscaling | None,
        over: Callable[[Unscaling], None],
    ) -> None:
        super().__init__(arguments)
        self._unscaling, self._over = unscaling, over

    def returns(self, result: object) -> object:
        if self._unscaling is not None:
            self._over(self._unscaling)
        return result


def unscaled_by(arguments: Arguments) -> list[torch.Tensor]:
    """The parameters whose gradients a call of `GradScaler.unscale_` divides.

    Args:
        arguments: the scaler and the optimizer.
    """
    optimizer: Any = scaler.unwrap(arguments[1])
    return parameters_of(optimizer) if hasattr(optimizer, "param_groups") else []
