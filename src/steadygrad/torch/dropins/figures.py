"""`measure`: the figures of gradients, and nothing else."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch

from steadygrad.errors import UsageError
from steadygrad.stats import GradientStats
from steadygrad.torch.dropins.arguments import require_norm_type
from steadygrad.torch.gradients.measuring import measure_gradients
from steadygrad.torch.internals.eager import eager

FIGURES = ("norms", "max_abs", "nonfinite", "zeros", "total_norm")


def measure(
    tensors: torch.Tensor | Iterable[object] | Mapping[str, torch.Tensor], norm_type: float = 2.0
) -> GradientStats:
    """Measure gradients in one read; nothing is changed.

    Args:
        tensors: ``model.named_parameters()``, a mapping of names to tensors, or tensors alone.
            A parameter (or a leaf that requires grad) stands for its gradient, and is left
            out where it has none; any other tensor is measured itself.
        norm_type: p of the norms, >= 0.5 or inf.

    Returns:
        The figures as torch tensors, ``[tensors]``, float64 and int64 where the device has them.

    Raises:
        UsageError: not tensors, or a `norm_type` that is no norm.

    Example:
        >>> stats = measure({"w": torch.tensor([3.0, 4.0]), "b": torch.tensor([0.0])})
        >>> stats.names, stats.norms.tolist(), stats.zeros.tolist(), stats.total_norm.item()
        (('w', 'b'), [5.0, 0.0], [0, 1], 5.0)
    """
    return _measured(tensors, norm_type)


@eager
def _measured(tensors: object, norm_type: float) -> GradientStats:
    p = require_norm_type(norm_type, "measure")
    pairs = [(name, _gradient(tensor)) for name, tensor in _named(tensors)]
    there = [(name, grad) for name, grad in pairs if grad is not None]
    grads = [grad for _, grad in there]
    names = tuple(name for name, _ in there)
    stats = measure_gradients(grads, names, tuple(g.numel() for g in grads), p)
    figures: dict[str, Any] = {key: torch.as_tensor(getattr(stats, key)) for key in FIGURES}
    return replace(stats, **figures)


def _named(tensors: Any) -> list[tuple[str, torch.Tensor]]:
    if isinstance(tensors, torch.nn.Module):
        raise UsageError("measure got a module; type measure(model.named_parameters())")
    if isinstance(tensors, Mapping):
        tensors = tensors.items()
    items = [tensors] if isinstance(tensors, torch.Tensor) else list(tensors)
    pairs = [item if isinstance(item, tuple) else (str(i), item) for i, item in enumerate(items)]
    for pair in pairs:
        if len(pair) != 2 or not isinstance(pair[1], torch.Tensor):
            raise UsageError(
                f"measure needs tensors or (name, tensor) pairs, got {pair!r}; "
                "type measure(model.named_parameters())"
            )
    return pairs


def _gradient(tensor: torch.Tensor) -> torch.Tensor | None:
    if isinstance(tensor, torch.nn.Parameter) or (tensor.is_leaf and tensor.requires_grad):
        return tensor.grad
    return tensor.detach()
