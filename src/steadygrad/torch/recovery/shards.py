"""This rank's pieces of sharded tensors as plain tensors that any file holds, and back again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from steadygrad.errors import UsageError
from steadygrad.torch.gradients.pieces import is_sharded, local

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.tensor import Placement

PIECE = "steadygrad piece"
"""Key of the dict that stands for a sharded tensor; no state of an optimizer has it."""


def meshes_of(tensors: Sequence[Any]) -> list[DeviceMesh]:
    """The meshes of sharded tensors, each once, in order."""
    meshes: list[DeviceMesh] = []
    for tensor in tensors:
        if is_sharded(tensor) and tensor.device_mesh not in meshes:
            meshes.append(tensor.device_mesh)
    return meshes


def as_pieces(value: Any, meshes: Sequence[DeviceMesh]) -> Any:
    """Nested containers with every sharded tensor replaced by what this rank holds of it.

    Args:
        value: dicts, lists and tuples of tensors and plain values.
        meshes: of the parameters.

    Raises:
        UsageError: a tensor is split in a way that is not known here, or over another mesh.
    """
    if is_sharded(value):
        if value.device_mesh not in meshes:
            raise UsageError("a tensor is sharded over a mesh that no parameter is sharded over")
        return {
            PIECE: local([value])[0],
            "shape": list(value.shape),
            "mesh": list(meshes).index(value.device_mesh),
            "placements": [_number(each) for each in value.placements],
        }
    if isinstance(value, dict):
        return {key: as_pieces(each, meshes) for key, each in value.items()}
    if type(value) in (list, tuple):
        return type(value)(as_pieces(each, meshes) for each in value)
    return value


def as_tensors(value: Any, meshes: Sequence[DeviceMesh]) -> Any:
    """What `as_pieces` was given.

    Args:
        value: what it gave.
        meshes: as there, of the parameters of now.

    Raises:
        UsageError: there are fewer meshes than there were.
    """
    if isinstance(value, dict) and PIECE in value:
        if value["mesh"] >= len(meshes):
            raise UsageError("restore: the snapshot is of sharded weights, and these are not")
        return _sharded(value, meshes[value["mesh"]])
    if isinstance(value, dict):
        return {key: as_tensors(each, meshes) for key, each in value.items()}
    if type(value) in (list, tuple):
        return type(value)(as_tensors(each, meshes) for each in value)
    return value


def laid_out_alike(left: torch.Tensor, right: torch.Tensor) -> bool:
    """Whether two tensors have one shape, and are split alike over the ranks."""
    (here,), (there,) = local([left]), local([right])
    split = [getattr(each, "placements", None) for each in (left, right)]
    return left.shape == right.shape and here.shape == there.shape and split[0] == split[1]


def _sharded(piece: dict[str, Any], mesh: DeviceMesh) -> torch.Tensor:
    from torch.distributed.tensor import DTensor, Replicate, Shard

    shape = torch.Size(piece["shape"])
    placements = [Replicate() if n is None else Shard(n) for n in piece["placements"]]
    stride = torch.empty(shape, device="meta").stride()
    part = piece[PIECE].to(mesh.device_type)
    return DTensor.from_local(part, mesh, placements, shape=shape, stride=stride)


def _number(placement: Placement) -> int | None:
    """The dimension that is split; None for none."""
    from torch.distributed.tensor import Replicate, Shard

    if type(placement) is Replicate:
        return None
    if type(placement) is not Shard:
        raise UsageError(f"a tensor is placed as {placement}, which no file of a rank can hold")
    return placement.dim
