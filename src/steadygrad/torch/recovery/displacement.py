"""How far weights move between snapshots, and whether they have moved further than usual since.

A struck step is the data's fault or the weights'. Dropping steps mends the first, going back the
second. A bit flip, a burst of the learning rate or a broken optimizer state moves weights further
than training does: the root of the steps, as a random walk has it, bounds an ordinary move over
fewer steps than those it was learned from.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

import torch

from steadygrad.torch.gradients.pieces import local
from steadygrad.torch.step.snapshot import Snapshot

FACTOR = 4.0
"""A move over so many usual ones is not training's."""


class Move(NamedTuple):
    """A move of the weights, by its 2-norm and its largest element."""

    whole: float
    largest: float


class Displacement:
    """Learns the usual move.

    Example:
        >>> weight = torch.nn.Parameter(torch.zeros(2))
        >>> optimizer = torch.optim.SGD([weight], lr=1.0)
        >>> displacement, before = Displacement(), Snapshot(optimizer)
        >>> weight.data += 0.1
        >>> displacement.learn(before, [weight], steps=10)
        >>> weight.data += 0.1
        >>> displacement.is_unusual(before, [weight], steps=20)
        False
        >>> weight.data += 1e9
        >>> displacement.is_unusual(before, [weight], steps=20)
        True
    """

    def __init__(self) -> None:
        self._usual: deque[Move] = deque(maxlen=4)
        self._largest: Move | None = None

    def learn(self, before: Snapshot, params: Sequence[torch.Tensor], steps: int) -> None:
        """Learn an ordinary move: the one since a snapshot, when a step was sound."""
        if steps > 0:
            whole, largest = move(before, params)
            usual = Move(whole / math.sqrt(steps), largest / math.sqrt(steps))
            self._usual.append(usual)
            so_far = self._largest or usual
            self._largest = Move(*map(max, usual, so_far))

    def is_unusual(
        self, before: Snapshot, params: Sequence[torch.Tensor], steps: int
    ) -> bool | None:
        """Whether weights moved further than training moves them; None where none was learned."""
        if not self._usual or steps <= 0:
            return None
        now, bound = move(before, params), FACTOR * math.sqrt(steps)
        usual = [max(column) * bound for column in zip(*self._usual, strict=True)]
        return not (now.whole <= usual[0] and now.largest <= usual[1])

    def ratio(self, before: Snapshot, params: Sequence[torch.Tensor], steps: int) -> float | None:
        """How many times the largest move learned so far the one since a snapshot is."""
        if self._largest is None or steps <= 0:
            return None
        now, root = move(before, params), math.sqrt(steps)
        pairs = zip(now, self._largest, strict=True)
        return max(each / (most * root) if most else math.inf for each, most in pairs)


def times_its_size(before: Snapshot, params: Sequence[torch.Tensor]) -> float | None:
    """How far weights are from a snapshot, by its own 2-norm; None where that is 0."""
    copies = [copy for p in params if (copy := before.copy_of(p)) is not None]
    floats = [c.detach().float() for c in local(copies) if c.numel() and not c.is_complex()]
    size = math.sqrt(sum(float(each.square().sum()) for each in floats))
    return move(before, params).whole / size if size > 0 else None


def move(before: Snapshot, params: Sequence[torch.Tensor]) -> Move:
    """The move from a snapshot to now; of sharded weights, this rank's part."""
    squares, largest = 0.0, 0.0
    for parameter in params:
        copy = before.copy_of(parameter)
        if copy is None or copy.is_complex():
            continue
        here, there = local([parameter.detach(), copy])
        if there.numel() == 0:  # a rank may hold nothing of a tensor
            continue
        change = (here.to(there.device) - there).float().abs_()
        most = float(change.max())
        largest = max(largest, most) if most == most else math.inf
        scale = most if 0 < most < math.inf else 1.0
        squares += float((change / scale).square().sum()) * scale * scale
    return Move(math.sqrt(squares), largest)
