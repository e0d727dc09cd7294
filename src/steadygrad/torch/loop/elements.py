"""A few elements of a tensor, by which it is seen whether it is still the same later."""

from __future__ import annotations

import math

import torch

MOST = 32
SPREAD = 0.62
"""How far the column of an element lies from that of the one before, as a share of a row."""


def elements_of(tensor: object) -> torch.Tensor | None:
    """A copy of at most `MOST` spread elements; None of one that cannot be read here.

    Args:
        tensor: a parameter or a gradient, of any shape and dtype.

    Returns:
        A vector on the tensor's device; nothing is waited for.

    Example:
        >>> elements_of(torch.arange(64.0))[:3]
        tensor([0., 2., 4.])
    """
    if not isinstance(tensor, torch.Tensor) or type(tensor) not in _PLAIN:
        return None
    if tensor.layout is not torch.strided or tensor.is_meta or not tensor.numel():
        return None
    if not tensor.untyped_storage().size():  # FSDP1 frees it between passes
        return None
    flat = tensor.detach().reshape(-1)
    return flat[:: _distance(tensor)][:MOST].clone()


def _distance(tensor: torch.Tensor) -> int:
    """From one element to the next, so that many columns are seen.

    Whole columns stay as they are where an input is always 0, such as the pixels at the edge of
    images: a distance that is a multiple of the row's length sees the first of them alone.
    """
    far = max(1, tensor.numel() // MOST)
    columns = tensor.numel() // len(tensor) if tensor.dim() > 1 else 1
    if far >= columns:
        far -= (far - round(SPREAD * columns)) % columns
    while math.gcd(far, columns) > 1:
        far -= 1
    return far


_PLAIN = (torch.Tensor, torch.nn.Parameter)
"""Classes whose elements can be read without a word to other processes."""
