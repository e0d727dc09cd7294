"""The elements of a gradient that can be rewritten one by one, whatever its layout."""

from __future__ import annotations

import torch

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
    values = local([grad.detach()])[0]
    if values.layout is torch.strided:
        return values
    return values._values() if values.layout is torch.sparse_coo else values.values()
