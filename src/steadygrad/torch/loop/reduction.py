"""Is a loss summed where it could be averaged? The autograd graph's first nodes say so exactly."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch.autograd.graph import Node

MOST_TERMS = 16
FEW = 8
"""Elements below which a sum is one of a few terms, and no batch."""

_SUMS = ("SumBackward",)
_TERMS = ("AddBackward", "SubBackward")


def summed_of(roots: Iterable[torch.Tensor]) -> int:
    """How many elements the losses sum up where nothing divides the sum; 0 where they do not.

    Args:
        roots: the tensors on which backward is called.

    Returns:
        The elements of the largest sum among the terms of a loss.

    Example:
        >>> x, y = torch.zeros(4, 3, requires_grad=True), torch.ones(4, 3)
        >>> summed_of([torch.nn.functional.mse_loss(x, y, reduction="sum")])
        12
        >>> summed_of([((x - y) ** 2).sum() / 4])
        0
    """
    waiting = [root.grad_fn for root in roots if root.grad_fn is not None and root.numel() == 1]
    most = 0
    for _ in range(MOST_TERMS):
        if not waiting:
            break
        node = waiting.pop()
        if node.name().startswith(_TERMS):
            waiting += [n for n, _ in node.next_functions if n is not None]
        else:
            most = max(most, _elements(node))
    return most if most >= FEW else 0


def _elements(node: Node) -> int:
    """Elements of what a node sums up to one number; 0 where it does something else."""
    if node.name().startswith(_SUMS):
        return int(torch.Size(getattr(node, _SIZES)).numel())
    if getattr(node, "_saved_reduction", None) == _SUM:
        target = getattr(node, "_saved_target", None)
        return target.numel() if isinstance(target, torch.Tensor) else 0
    return 0


_SIZES = "_saved_self_sym_sizes"
_SUM = 2
"""What `torch.nn.functional` calls ``reduction="sum"`` inside."""
