"""From gradients to `GradientStats`: the one place that calls the kernel's read.

Where each rank holds a piece of a gradient, it reads its own in one pass; the few figures are
exchanged and joined (`exchange`) as the layout of the tensors says (`layout`).
On a CPU the figures are NumPy arrays, so that deciding costs microseconds; on a
device they stay there, and nothing here reads them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import array_api_compat.torch as torch_namespace
import numpy as np
import torch

from steadygrad import kernels
from steadygrad.kernels import Read
from steadygrad.stats import GradientStats, combine_norms
from steadygrad.torch.distributed.exchange import (
    joined,
    summed_over_pieces,
    warn_of_replicas,
)
from steadygrad.torch.distributed.layout import NOWHERE, Spread, layout_of
from steadygrad.torch.gradients.pieces import any_sharded, is_sharded, local, summed


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


def read_whole(
    tensors: Sequence[torch.Tensor],
    norm_type: float,
    spread: Spread = NOWHERE,
    present: list[int] | None = None,
) -> Read:
    """As `kernels.read`, with the figures of whole tensors where ranks hold pieces of them.

    Args:
        tensors: gradients, the same ones in the same order on every rank.
        norm_type: p of the norms.
        spread: what the tensors do not tell of where their pieces are.
        present: their places among the parameters of `spread`; None for all.

    Raises:
        UsageError: a tensor is laid out in a way that is not understood.
    """
    if spread is NOWHERE and not any_sharded(tensors):
        return kernels.read(tensors, norm_type)
    if present is not None and not spread.params:
        present = None
    every = tensors if present is None else _with_absent(tensors, spread, present)
    layout = layout_of(every, spread)
    if layout.partial:
        tensors = [summed(t) if is_sharded(t) else t for t in tensors]
        every = tensors if present is None else _with_absent(tensors, spread, present)
        layout = layout_of(every, spread)
    figures = kernels.read(local(tensors), norm_type)
    if not layout.exchanges:
        return figures
    tell = spread.tell or warn_of_replicas
    if present is None:
        return joined(figures, layout, norm_type, tell)
    spread_out = _spread_out(figures, present, len(every))
    return _chosen(joined(spread_out, layout, norm_type, tell), present)


def _with_absent(
    tensors: Sequence[torch.Tensor], spread: Spread, present: list[int]
) -> list[torch.Tensor]:
    """A tensor for every parameter, so that ranks exchange as many figures each."""
    every = list(spread.params)
    for place, tensor in zip(present, tensors, strict=True):
        every[place] = tensor
    return every


def _spread_out(figures: Read, present: list[int], count: int) -> Read:
    """Figures of all parameters: zeros for those without a gradient here."""

    def column(values: Any) -> Any:
        if isinstance(values, torch.Tensor):
            wide: Any = values.new_zeros(count)
        else:
            wide = np.zeros(count, values.dtype)
        wide[present] = values
        return wide

    return Read(*map(column, figures[:4]))


def _chosen(figures: Read, present: list[int]) -> Read:
    norms, max_abs, nonfinite, zeros = (column[present] for column in figures[:4])
    return figures._replace(norms=norms, max_abs=max_abs, nonfinite=nonfinite, zeros=zeros)


def inner_products(left: Sequence[torch.Tensor], right: Sequence[torch.Tensor]) -> object:
    """Inner products of pairs of tensors, whole where ranks hold pieces of them.

    Args:
        left: as many as ``right``, each laid out as its partner.
        right: the same ones in the same order on every rank.

    Returns:
        ``[pairs]`` float64: NumPy for tensors on the CPU, else a torch tensor.
    """
    pairs = zip(local(left), local(right), strict=True)
    inner = torch.stack([torch.sum(a.double() * b.double()) for a, b in pairs])
    if any_sharded(right):
        inner = summed_over_pieces(inner, layout_of(right))
    return inner.numpy() if inner.device.type == "cpu" else inner
