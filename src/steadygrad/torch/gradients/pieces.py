"""The memory of tensors on this rank: the pieces of sharded ones, and each element written once."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from operator import attrgetter
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch

from steadygrad import kernels

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

_LOCAL = attrgetter("_local_tensor")
_PLAIN = {torch.Tensor, torch.nn.Parameter}


def dtensor_class() -> type[DTensor] | None:
    """The class DTensor; None where nothing has imported it."""
    module = sys.modules.get("torch.distributed.tensor")
    return None if module is None else module.DTensor


def any_sharded(tensors: Iterable[object]) -> bool:
    """True where one of them is a DTensor; looks at types, which are few, not at tensors."""
    kind = dtensor_class()
    return kind is not None and any(issubclass(each, kind) for each in set(map(type, tensors)))


def is_sharded(tensor: object) -> bool:
    """True for a DTensor; does not import torch's distributed part."""
    kind = dtensor_class()
    return kind is not None and isinstance(tensor, kind)


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
    """A piece of a tensor, once the collective that fills it is done."""
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
            parameter.grad = summed(parameter.grad)


def summed(tensor: Any) -> Any:
    """A DTensor whose pending sums are carried out: their parts say nothing of the whole."""
    from torch.distributed.tensor import Replicate

    if not any(placement.is_partial() for placement in tensor.placements):
        return tensor
    done = [Replicate() if p.is_partial() else p for p in tensor.placements]
    return tensor.redistribute(placements=done)


def summed_values(parameter: torch.Tensor) -> torch.Tensor:
    """A dense tensor that shares memory with a parameter's gradient.

    A sparse gradient with duplicate entries is replaced by one without: the elements
    of the gradient are their sums, which are formed in float64.
    """
    grad = parameter.grad
    assert grad is not None
    if grad.layout is torch.sparse_coo and not grad.is_coalesced():
        wide = torch.complex128 if grad.is_complex() else torch.float64
        grad = parameter.grad = grad.to(wide).coalesce().to(grad.dtype)
    if grad.layout is torch.strided and _is_expanded(grad):
        grad = parameter.grad = grad.contiguous()  # elements that share memory cannot be written
    values = local([grad.detach()])[0]
    if values.layout is torch.strided:
        return values
    return values._values() if values.layout is torch.sparse_coo else values.values()


def scale_each_once(grads: Sequence[torch.Tensor], coefs: object) -> None:
    """Multiply gradients in place, a tensor that is the gradient of two parameters once.

    Args:
        grads: of any layout; pieces of sharded ones.
        coefs: 0-d, or one a gradient; of a shared one's the smallest counts.
    """
    if not share_memory(grads):
        kernels.scale_(grads, coefs)
        return
    places: dict[Any, list[int]] = {}
    for place, grad in enumerate(grads):
        places.setdefault(_memory_of(grad), []).append(place)
    if len(places) < len(grads):
        grads = [grads[shared[0]] for shared in places.values()]
        if isinstance(coefs, (np.ndarray, torch.Tensor)) and coefs.ndim:
            smallest = [coefs[shared].min() for shared in places.values()]
            on_device = isinstance(coefs, torch.Tensor)
            coefs = torch.stack(smallest) if on_device else np.array(smallest)
    kernels.scale_(grads, coefs)


def share_memory(grads: Sequence[torch.Tensor]) -> bool:
    """Whether a tensor is the gradient of two parameters."""
    try:  # the usual list costs one call of C a tensor
        if len(set(map(torch.Tensor.data_ptr, grads))) == len(grads):
            return False
    except RuntimeError:  # a sparse tensor has no memory of its own
        pass
    return len(set(map(_memory_of, grads))) < len(grads)


def _memory_of(grad: torch.Tensor) -> object:
    plain = type(grad) is torch.Tensor and grad.layout is torch.strided and grad.numel() > 0
    return (grad.data_ptr(), grad.numel()) if plain else id(grad)


def _is_expanded(grad: torch.Tensor) -> bool:
    steps = zip(grad.stride(), grad.shape, strict=True)
    return type(grad) is torch.Tensor and any(stride == 0 and size > 1 for stride, size in steps)


def zero_nonfinite(grads: Sequence[torch.Tensor], counts: Any) -> None:
    """Replace NaN and inf elements by 0 in the tensors that hold any."""
    with torch.no_grad():
        for grad, count in zip(local(grads), counts.tolist(), strict=True):
            if count:
                values = grad if grad.layout is torch.strided else _values_of(grad)
                parts = torch.view_as_real(values) if values.is_complex() else values
                parts.nan_to_num_(nan=0.0, posinf=0.0, neginf=0.0)
                if values.is_complex():  # a magnitude that no float64 holds is broken as well
                    magnitudes = values.to(torch.complex128).abs()
                    values.masked_fill_(torch.isinf(magnitudes), 0)


def _values_of(sparse: torch.Tensor) -> torch.Tensor:
    coordinates = sparse.layout is torch.sparse_coo
    return (sparse._values() if coordinates else sparse.values()).detach()
