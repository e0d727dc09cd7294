"""Are a loss's targets what it takes? What its graph has saved of them says so."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch.autograd.graph import Node

from steadygrad.runlog.info import TargetFacts
from steadygrad.torch.loop.logits import nodes_of, operation_of

_OF_0_TO_1 = {
    "BinaryCrossEntropyWithLogits": "bce_with_logits",
    "BinaryCrossEntropy": "binary_cross_entropy",
}
"""Losses that have no lower bound where a target leaves the range from 0 to 1."""
SLACK = 1e-3
"""How far rounding may carry a target out of it."""


def targets_of(roots: Iterable[torch.Tensor]) -> TargetFacts | None:
    """The range of targets that are outside of what their loss takes.

    The device is waited for, where there is such a loss.

    Args:
        roots: the tensors on which backward is called.

    Returns:
        ``{"loss": ..., "lowest": ..., "highest": ...}``, or None where all is well or unknown.

    Example:
        >>> x, y = torch.zeros(3, requires_grad=True), torch.tensor([0.0, 255.0, 0.0])
        >>> targets_of([torch.nn.functional.binary_cross_entropy_with_logits(x, y)])
        {'loss': 'bce_with_logits', 'lowest': 0.0, 'highest': 255.0}
    """
    for node in nodes_of(roots):
        loss = _OF_0_TO_1.get(operation_of(node))
        target = saved(node, "target") if loss else None
        if loss is None or target is None or not target.numel():
            continue
        lowest, highest = (float(v) for v in target.aminmax())
        if lowest < -SLACK or highest > 1 + SLACK:
            return {"loss": loss, "lowest": lowest, "highest": highest}
    return None


def saved(node: Node, name: str) -> torch.Tensor | None:
    """A tensor that a node keeps; None where to read it would call a hook of the script's."""
    raw = getattr(node, f"_raw_saved_{name}", None)
    if getattr(raw, "unpack_hook", raw) is not None:
        return None
    try:
        value = getattr(node, f"_saved_{name}")
    except RuntimeError:  # changed in place, or freed by an earlier backward
        return None
    plain = isinstance(value, torch.Tensor) and type(value) in (torch.Tensor, torch.nn.Parameter)
    return value if plain and not value.is_meta else None
