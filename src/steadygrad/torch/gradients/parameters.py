"""What an optimizer moves."""

from __future__ import annotations

import torch


def parameters_of(optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    """An optimizer's parameters, in its order.

    Example:
        >>> layer = torch.nn.Linear(2, 1)
        >>> [p.numel() for p in parameters_of(torch.optim.SGD(layer.parameters(), lr=0.1))]
        [2, 1]
    """
    return [p for group in optimizer.param_groups for p in group["params"]]
