"""Are a regression's targets of its outputs' size? What the graph of the loss has saved says so."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from steadygrad.runlog.info import SizeFacts
from steadygrad.torch.loop.broadcast import MOST_NODES
from steadygrad.torch.loop.logits import nodes_of, operation_of
from steadygrad.torch.loop.targets import saved

_REGRESSIONS = {"MseLoss": "mse_loss", "SmoothL1Loss": "smooth_l1_loss", "HuberLoss": "huber_loss"}


def sizes_of(roots: Iterable[torch.Tensor]) -> SizeFacts | None:
    """The root mean squares of a regression's targets and outputs, and the targets' deviation.

    The device is waited for, where there is such a loss.

    Args:
        roots: the tensors on which backward is called.

    Returns:
        ``loss``, ``targets``, ``spread`` and ``outputs``; None where no graph tells.

    Example:
        >>> x, y = torch.full((3,), 0.5, requires_grad=True), torch.full((3,), 1e6)
        >>> sizes_of([torch.nn.functional.mse_loss(x, y)])
        {'loss': 'mse_loss', 'targets': 1000000.0, 'spread': 0.0, 'outputs': 0.5}
    """
    for node in nodes_of(roots, MOST_NODES):
        loss = _REGRESSIONS.get(operation_of(node))
        if loss is None:
            continue
        outputs, targets = saved(node, "self"), saved(node, "target")
        if outputs is not None and targets is not None and targets.numel():
            return {
                "loss": loss,
                "targets": _size(targets),
                "spread": float(targets.detach().double().std(correction=0)),
                "outputs": _size(outputs),
            }
    return None


def _size(values: torch.Tensor) -> float:
    """Root mean square, in float64 so that no square overflows."""
    return float(values.detach().double().square().mean().sqrt())
