"""Does a loss get what it takes, logits or log-probabilities? Its graph says so exactly."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator

import torch
from torch.autograd.graph import Node

from steadygrad.runlog.info import LogitsFacts

MOST_NODES = 500
"""How far from the loss it is looked for."""

_SHAPES = (
    "View", "UnsafeView", "ReshapeAlias", "Transpose", "T", "Permute", "Squeeze", "Unsqueeze",
    "Select", "Slice", "Index", "ToCopy", "Clone", "Alias", "Expand",
)  # fmt: skip
"""Backward functions of operations that leave values as they are."""
_LOSSES = {"LogSoftmax": "cross_entropy", "BinaryCrossEntropyWithLogits": "bce_with_logits"}
_MAKERS = {"Softmax": "softmax", "Sigmoid": "sigmoid", "LogSoftmax": "log_softmax"}
_NLL = ("NllLoss", "NllLoss2D")
_NO_LOGARITHMS = {
    "Softmax": "softmax", "Sigmoid": "sigmoid",
    **dict.fromkeys(("Addmm", "Mm", "Convolution", "Linear"), "logits"),
}  # fmt: skip
"""What `nll_loss` is no loss of: it takes the logarithms of probabilities."""


def logits_of(roots: Iterable[torch.Tensor]) -> LogitsFacts | None:
    """What was applied to the logits before a loss that applies it itself.

    Args:
        roots: the tensors on which backward is called.

    Returns:
        ``{"loss": ..., "before": ...}``, or None where the loss gets what it wants.

    Example:
        >>> x, y = torch.zeros(2, 3, requires_grad=True), torch.tensor([0, 2])
        >>> logits_of([torch.nn.functional.cross_entropy(x.softmax(1), y)])
        {'loss': 'cross_entropy', 'before': 'softmax'}
        >>> logits_of([torch.nn.functional.cross_entropy(x, y)]) is None
        True
    """
    return next(filter(None, map(_mistake, nodes_of(roots))), None)


def nodes_of(roots: Iterable[torch.Tensor], most: int = MOST_NODES) -> Iterator[Node]:
    """The backward functions of a graph, the nearest to the loss first.

    Args:
        roots: the tensors on which backward is called.
        most: how many to look at.
    """
    waiting = deque(root.grad_fn for root in roots if root.grad_fn is not None)
    seen = set(waiting)
    while waiting and len(seen) < most:
        node = waiting.popleft()
        yield node
        following = [n for n, _ in node.next_functions if n is not None and n not in seen]
        seen.update(following)
        waiting.extend(following)


def _mistake(node: Node) -> LogitsFacts | None:
    """What a node applies to values that are not meant for it; None where all is well."""
    operation = operation_of(node)
    if operation in _NLL:
        before = _NO_LOGARITHMS.get(operation_of(_values_of(node)))
        return {"loss": "nll_loss", "before": before} if before else None
    loss = _LOSSES.get(operation)
    before = _MAKERS.get(operation_of(_values_of(node))) if loss else None
    return {"loss": loss, "before": before} if loss and before else None


def _values_of(node: Node) -> Node | None:
    """The node that made the values of this one's first input."""
    before: Node | None = node
    while before is not None:
        before = before.next_functions[0][0] if before.next_functions else None
        if operation_of(before) not in _SHAPES:
            break
    return before


def operation_of(node: Node | None) -> str:
    """A backward function's operation, without its suffix and number."""
    return "" if node is None else str(node.name()).partition("Backward")[0].lstrip("_")
