"""Does a loss compare every output with every target? Shapes on its graph say so exactly."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch.autograd.graph import Node

from steadygrad.torch.loop.logits import nodes_of, operation_of

MOST_NODES = 32
"""A comparison stands near the loss."""

_COMPARES = ("MseLoss", "SmoothL1Loss", "HuberLoss", "Sub")
_ON_PURPOSE = ("Unsqueeze",)
"""``x[:, None]`` asks for all pairs."""


def broadcast_of(roots: Iterable[torch.Tensor]) -> list[int]:
    """The shape of outputs that a loss compares with all targets, not each with its own.

    Outputs of ``[rows, 1]`` against targets of ``[rows]`` give ``[rows, rows]`` differences,
    without a word; and so the other way round.

    Args:
        roots: the tensors on which backward is called.

    Returns:
        The shape of the outputs; empty where nothing is broadcast so.

    Example:
        >>> x, y = torch.nn.Linear(2, 1)(torch.zeros(5, 2)), torch.ones(5)
        >>> broadcast_of([((x - y) ** 2).mean()])
        [5, 1]
        >>> broadcast_of([((x - y[:, None]) ** 2).mean()])
        []
    """
    for node in nodes_of(roots, MOST_NODES):
        if operation_of(node) in _COMPARES:
            for before, after in _shapes(node):
                if _all_pairs(before, after):
                    return list(before)
    return []


def _all_pairs(before: tuple[int, ...], after: tuple[int, ...]) -> bool:
    rows = max(before, default=0)
    return rows > 1 and before in ((rows, 1), (rows,)) and after == (rows, rows)


def _shapes(node: Node) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """The shape of the one operand that has a graph, and what became of it in this operation."""
    operands = [child for child, _ in node.next_functions]
    grown = [child for child in operands if child is not None]
    if len(operands) != 2 or len(grown) != 1:  # two outputs of the model: pairs, it may be
        return
    child: Node | None = grown[0]
    after = _shape(node)
    if child is not None and operation_of(child) == "Expand":
        after = _shape(child)
        child = child.next_functions[0][0]
    leaf = getattr(child, "variable", None)
    if child is not None and leaf is None and operation_of(child) not in _ON_PURPOSE:
        yield _shape(child), after


def _shape(node: Node | None) -> tuple[int, ...]:
    """The shape of what a node returned; empty where torch does not tell."""
    metadata: tuple[torch.Tensor, ...] = getattr(node, "_input_metadata", ())  # like tensors
    return tuple(int(size) for size in metadata[0].shape) if len(metadata) == 1 else ()
