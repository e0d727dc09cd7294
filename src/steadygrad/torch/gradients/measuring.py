"""From gradients to `GradientStats`: the one place that calls the kernel's read.

On a CPU the figures are NumPy arrays, so that deciding costs microseconds; on a
device they stay there, and nothing here reads them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import array_api_compat.torch as torch_namespace
import numpy as np
import torch

from steadygrad.stats import GradientStats, combine_norms
from steadygrad.torch.distributed.layout import NOWHERE, Spread
from steadygrad.torch.distributed.sharded import read_whole


def namespace(array: object) -> Any:
    """The array namespace in which figures are computed with: NumPy's or torch's."""
    return torch_namespace if isinstance(array, torch.Tensor) else np


def measure_gradients(
    grads: Sequence[torch.Tensor],
    names: tuple[str, ...],
    sizes: tuple[int, ...],
    norm_type: float,
    scale: Any = None,
    spread: Spread = NOWHERE,
    present: list[int] | None = None,
) -> GradientStats:
    """Read gradients once.

    Args:
        grads: one gradient a name.
        names: their names.
        sizes: their numbers of elements.
        norm_type: p of the norms.
        scale: the loss scale that the gradients carry, a number or 0-d tensor; None for none.
        spread: which ranks hold pieces of them, as far as the tensors do not tell.
        present: places of the gradients among the parameters of `spread`; None for all.

    Returns:
        Unscaled figures, NumPy for gradients on the CPU, else torch tensors on their device.
    """
    norms, max_abs, nonfinite, zeros, total, elsewhere, own = read_whole(
        grads, norm_type, spread, present
    )
    if total is None:
        total = total_of(norms, norm_type)
    if scale is not None:
        divisor = scale if isinstance(norms, torch.Tensor) else float(scale)
        norms, max_abs, total = norms / divisor, max_abs / divisor, total / divisor
        own = own if own is None else unscaled(own, divisor)
    return GradientStats(
        names, norms, max_abs, nonfinite, zeros, sizes, total, norm_type, elsewhere, own
    )


def unscaled(own: Any, divisor: Any) -> Any:
    """A rank's own norm without the loss scale; the count beside it stays."""
    xp = namespace(own)
    return xp.stack([own[0] / divisor, own[1]])


def total_of(norms: Any, norm_type: float) -> Any:
    """The total norm of per-tensor norms; 0 for no tensors."""
    xp = namespace(norms)
    if norms.shape[0] == 0:
        return xp.sum(norms)
    return combine_norms(xp, norms, norm_type)
