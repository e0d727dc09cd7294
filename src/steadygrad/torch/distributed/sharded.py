"""Gradients that live in pieces on several ranks.

Each rank reads its own piece; the few figures are gathered over the mesh dimensions
that split the tensor and joined in the same order everywhere, so that every rank
comes to the same bits and therefore to the same decision. There is one
collective per mesh dimension, however many tensors there are.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from steadygrad import kernels
from steadygrad.errors import UsageError
from steadygrad.kernels import Read
from steadygrad.stats import combine_norms


def read_whole(tensors: Sequence[torch.Tensor], norm_type: float) -> Read:
    """As `kernels.read`, with the figures of whole tensors where some are `DTensor`.

    Args:
        tensors: gradients, the same ones in the same order on every rank.
        norm_type: p of the norms.
    """
    if not any_sharded(tensors):
        return kernels.read(tensors, norm_type)
    parts = [_without_partial(t) if is_sharded(t) else t for t in tensors]
    figures = kernels.read(local(parts), norm_type)
    return _gathered(parts, figures, norm_type)


def any_sharded(tensors: Sequence[Any]) -> bool:
    """True where one of them is a DTensor; looks at types, which are few, not at tensors."""
    kind = _dtensor()
    return kind != () and any(issubclass(found, kind) for found in set(map(type, tensors)))


def _dtensor() -> Any:
    """The class DTensor, or no class where nothing has imported it."""
    module = sys.modules.get("torch.distributed.tensor")
    return () if module is None else module.DTensor


def is_sharded(tensor: Any) -> bool:
    """True for a DTensor; does not import torch's distributed part."""
    return isinstance(tensor, _dtensor())


def local(tensors: Sequence[Any]) -> Sequence[torch.Tensor]:
    """The pieces of this rank, sharing memory with the tensors given."""
    if not any_sharded(tensors):
        return tensors
    return [t.to_local() if is_sharded(t) else t for t in tensors]


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


def refuse_flat_shards(parameters: Sequence[Any], caller: str) -> None:
    """Refuse FSDP1's parameters: each rank would clip by the norm of its own piece.

    Raises:
        UsageError: says what to use instead.
    """
    if "torch.distributed.fsdp" not in sys.modules:  # asking each parameter is not cheap
        return
    for parameter in parameters:
        flat = getattr(parameter, "_fsdp_flattened", False) or getattr(
            parameter, "_is_flat_param", False
        )
        if flat:
            raise UsageError(
                f"{caller}: these parameters are sharded by FullyShardedDataParallel (FSDP1), "
                "which does not tell how. Shard with torch.distributed.fsdp.fully_shard, or call "
                "the wrapped model's own model.clip_grad_norm_(max_norm)"
            )


def _without_partial(tensor: Any) -> Any:
    """A DTensor whose pending sums are carried out: their parts say nothing of the whole."""
    from torch.distributed.tensor import Replicate

    if not any(placement.is_partial() for placement in tensor.placements):
        return tensor
    done = [Replicate() if p.is_partial() else p for p in tensor.placements]
    return tensor.redistribute(placements=done)


def _gathered(tensors: Sequence[Any], figures: Read, norm_type: float) -> Read:
    rows = torch.stack([torch.as_tensor(c).to(torch.float64) for c in figures[:4]])  # [4, tensors]
    for (mesh, dimension), places in sorted(_splits(tensors).items(), key=lambda kv: kv[1][0]):
        group = mesh.get_group(dimension)
        mine = rows[:, places].contiguous()
        pieces = [torch.empty_like(mine) for _ in range(mesh.size(dimension))]
        torch.distributed.all_gather(pieces, mine, group=group)
        rows[:, places] = _joined(torch.stack(pieces), norm_type)
    norms, max_abs, nonfinite, zeros = rows
    if isinstance(figures.norms, np.ndarray):
        whole = [norms.numpy(), max_abs.numpy(), nonfinite.long().numpy(), zeros.long().numpy()]
        return Read(*whole)
    return Read(norms, max_abs, nonfinite.long(), zeros.long())


def _splits(tensors: Sequence[Any]) -> dict[tuple[Any, int], list[int]]:
    """Which tensors are split over which dimension of which mesh."""
    found: dict[tuple[Any, int], list[int]] = {}
    for place, tensor in enumerate(tensors):
        for dimension, placement in enumerate(tensor.placements if is_sharded(tensor) else ()):
            if placement.is_shard():
                found.setdefault((tensor.device_mesh, dimension), []).append(place)
    return found


def _joined(pieces: torch.Tensor, norm_type: float) -> torch.Tensor:
    """Join ``[ranks, 4, tensors]`` over the ranks."""
    norms, max_abs, counts = pieces[:, 0], pieces[:, 1], pieces[:, 2:]
    whole = [combine_norms(torch, column, norm_type) for column in norms.unbind(1)]
    return torch.cat([torch.stack([torch.stack(whole), max_abs.amax(0)]), counts.sum(0)])
