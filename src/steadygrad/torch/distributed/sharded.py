"""Gradients of which each rank holds a piece, seen as whole tensors.

Each rank reads its own piece in one pass; the few figures are exchanged and joined
(`exchange`) as the layout of the tensors says (`layout`).
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import attrgetter
from typing import Any, cast

import numpy as np
import torch

from steadygrad import kernels
from steadygrad.kernels import Read
from steadygrad.torch.distributed.exchange import (
    joined,
    summed_over_pieces,
    warn_of_replicas,
)
from steadygrad.torch.distributed.layout import (
    NOWHERE,
    Spread,
    any_sharded,
    dtensor_class,
    is_sharded,
    layout_of,
)

_LOCAL = attrgetter("_local_tensor")
_PLAIN = {torch.Tensor, torch.nn.Parameter}


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
        tensors = [_summed(t) if is_sharded(t) else t for t in tensors]
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


def local(tensors: Sequence[Any]) -> Sequence[torch.Tensor]:
    """The pieces of this rank, sharing memory with the tensors given."""
    kinds = set(map(type, tensors))
    if kinds <= _PLAIN or not any_sharded(tensors):
        return tensors
    if len(kinds) == 1:
        pieces = list(map(_LOCAL, tensors))
    else:
        pieces = [_LOCAL(t) if is_sharded(t) else t for t in tensors]
    if set(map(type, pieces)) <= _PLAIN:
        return pieces
    return [_arrived(piece) for piece in pieces]


def _arrived(piece: object) -> torch.Tensor:
    """A piece whose collective may still be under way, waited for."""
    wait = getattr(piece, "wait", None)
    if type(piece) not in _PLAIN and callable(wait):
        piece = wait()
    return cast("torch.Tensor", piece)


def whole(tensor: Any) -> torch.Tensor:
    """A DTensor gathered from all ranks; any other tensor as it is."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor  # type: ignore[no-any-return]


def piece_of(full: torch.Tensor, like: Any) -> torch.Tensor:
    """What this rank holds of a gathered tensor that is laid out as ``like``; no communication."""
    if not is_sharded(like):
        return full
    from torch.distributed.tensor import distribute_tensor

    spread = distribute_tensor(full, like.device_mesh, like.placements, src_data_rank=None)
    return spread.to_local()


def carry_out_sums(parameters: Sequence[torch.Tensor]) -> None:
    """Replace gradients whose sum over the ranks is pending by that sum.

    What acts on single elements would otherwise act on the parts of the sum.

    Args:
        parameters: with gradients, the same ones in the same order on every rank.
    """
    for parameter in parameters if dtensor_class() is not None else ():
        if is_sharded(parameter.grad):
            parameter.grad = _summed(parameter.grad)


def _summed(tensor: Any) -> Any:
    """A DTensor whose pending sums are carried out: their parts say nothing of the whole."""
    from torch.distributed.tensor import Replicate

    if not any(placement.is_partial() for placement in tensor.placements):
        return tensor
    done = [Replicate() if p.is_partial() else p for p in tensor.placements]
    return tensor.redistribute(placements=done)
