"""Which parts of a model stand behind one another, and which side by side.

Autograd's graph tells: a part whose operations lead back to another's stands behind it. Two
networks that share a loss, or the heads of one trunk, lead back to each other at no point, and a
comparison of their gradients says nothing of depth.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from typing import Any

import torch

MOST_NODES = 20_000


def chains_of(
    roots: Iterable[torch.Tensor], part_of: Callable[[torch.Tensor], Hashable | None]
) -> list[set[int]]:
    """The chains of parts, each as the ids of the leaves in it.

    Args:
        roots: the tensors on which backward is called.
        part_of: gives the part that a leaf belongs to; None for no part.

    Returns:
        One set for each part that no other stands behind; empty for a graph that is too large.

    Example:
        >>> a, b, c = (torch.ones(2, requires_grad=True) for _ in range(3))
        >>> trunk = (a * 2).exp()
        >>> chains = chains_of([(trunk * b).sum() + (trunk * c).sum()], id)
        >>> sorted(len(chain) for chain in chains), all(id(a) in chain for chain in chains)
        ([2, 2], True)
    """
    order = _children_first([root.grad_fn for root in roots if root.grad_fn is not None])
    if order is None:
        return []
    bits: dict[Hashable, int] = {}
    members: dict[int, set[int]] = {}
    behind: dict[int, int] = {}
    reached: dict[Any, int] = {}
    for node in order:
        own, below = 0, 0
        for following, _ in node.next_functions:
            leaf = getattr(following, "variable", None)
            part = None if leaf is None else part_of(leaf)
            if part is not None:
                bit = bits.setdefault(part, 1 << len(bits))
                members.setdefault(bit, set()).add(id(leaf))
                own |= bit
            elif following is not None and leaf is None:
                below |= reached.get(following, 0)
        for bit in _single(own):
            behind[bit] = behind.get(bit, 0) | below
        reached[node] = own | below
    ends = [bit for bit in members if not any(_strictly(other, bit, behind) for other in members)]
    return [
        set().union(*(members[b] for b in _single(end | behind.get(end, 0)) if b in members))
        for end in ends
    ]


def _strictly(later: int, earlier: int, behind: dict[int, int]) -> bool:
    """Whether one part stands behind another, and not the other way round as well."""
    return (
        later != earlier
        and bool(behind.get(later, 0) & earlier)
        and not behind.get(earlier, 0) & later
    )


def _single(bits: int) -> Iterable[int]:
    while bits:
        lowest = bits & -bits
        yield lowest
        bits ^= lowest


def _children_first(starts: list[Any]) -> list[Any] | None:
    """All nodes, each after those that it leads to; None where there are too many."""
    order: list[Any] = []
    seen: set[Any] = set()
    waiting = [(start, False) for start in starts]
    while waiting:
        node, done = waiting.pop()
        if done:
            order.append(node)
        elif node not in seen:
            seen.add(node)
            if len(seen) > MOST_NODES:
                return None
            waiting.append((node, True))
            waiting.extend(
                (following, False)
                for following, _ in node.next_functions
                if following is not None and not hasattr(following, "variable")
            )
    return order
