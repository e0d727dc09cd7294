"""Read a loss's autograd graph before it is freed: which leaves it reaches, in which order.

Autograd numbers its nodes as the forward pass makes them, so the graph tells the
forward order of the parameters without a hook on any module. Hooks on modules
would make `torch.compile` warn and cost time at every call.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

MOST_NODES = 200_000


def leaves_of(roots: Iterable[torch.Tensor]) -> list[torch.Tensor]:
    """The leaves that a backward from these tensors would reach.

    Args:
        roots: tensors with a graph.

    Returns:
        They, in the order of the first operations that used them. At most `MOST_NODES` nodes are
        looked at.

    Example:
        >>> a, b = torch.ones(1, requires_grad=True), torch.ones(1, requires_grad=True)
        >>> loss = (torch.exp(b) * a).sum()
        >>> [leaf is b for leaf in leaves_of([loss])]
        [True, False]
    """
    # by ids: to hash a tensor is a call of Python's
    leaves: dict[int, torch.Tensor] = {}
    first: dict[int, int] = {}
    seen: set[Any] = set()
    waiting = [root.grad_fn for root in roots if root.grad_fn is not None]
    while waiting and len(seen) < MOST_NODES:
        node = waiting.pop()
        if node in seen:
            continue
        seen.add(node)
        number = node._sequence_nr()
        for following, _ in node.next_functions:
            # asked of the type: a node of a function of the script's may hold what it likes
            if hasattr(type(following), "variable"):
                leaf: torch.Tensor = getattr(following, "variable")  # noqa: B009
                key = id(leaf)
                if number <= first.get(key, number):
                    leaves[key], first[key] = leaf, number
            elif following is not None:
                waiting.append(following)
    return [leaves[key] for key in sorted(leaves, key=first.__getitem__)]
