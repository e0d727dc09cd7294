"""The memory of gradients that is written: each element once, whatever the layout."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from steadygrad import kernels
from steadygrad.torch.distributed.sharded import local


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
