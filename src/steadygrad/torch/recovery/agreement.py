"""One reading for all ranks: the mean of their losses and norms, and whether any is broken."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch
import torch.distributed as dist

from steadygrad.recovery.events import PERSISTENT, TRANSIENT, UNKNOWN
from steadygrad.recovery.triggers import Reading
from steadygrad.vocabulary import Nature

NumberedContent: TypeAlias = "tuple[int, bytes]"
"""The step and the content of a snapshot."""


def agreed(reading: Reading, device: torch.device) -> Reading:
    """The same reading on every rank; one small all-reduce.

    Args:
        reading: of this rank.
        device: where the weights are.
    """
    loss_known = reading.loss == reading.loss and reading.loss_finite
    norm_known = reading.norm == reading.norm and abs(reading.norm) != float("inf")
    table = torch.tensor(
        [
            reading.loss if loss_known else 0.0,
            float(loss_known),
            reading.norm if norm_known else 0.0,
            float(norm_known),
            float(not reading.loss_finite),
            float(not reading.gradients_finite),
            float(not reading.weights_finite),
            float(not reading.statistics_steady),
        ],
        dtype=torch.float64,
        device=device,
    )
    dist.all_reduce(table)
    loss, losses, norm, norms, *bad = table.tolist()
    nan = float("nan")
    return Reading(
        reading.step,
        loss / losses if losses else nan,
        norm / norms if norms else nan,
        *(not each for each in bad),
    )


def largest(value: int, device: torch.device) -> int:
    """The largest of the ranks' values."""
    table = torch.tensor([value], dtype=torch.int64, device=device)
    dist.all_reduce(table, op=dist.ReduceOp.MAX)
    return int(table.item())


def smallest(value: int, device: torch.device) -> int:
    """The smallest of the ranks' values."""
    return -largest(-value, device)


def common_nature(nature: Nature, device: torch.device) -> Nature:
    """What all ranks together say of a NaN: one that sees it again decides."""
    order: tuple[Nature, ...] = (TRANSIENT, UNKNOWN, PERSISTENT)
    return order[largest(order.index(nature), device)]


def common_newest(
    newest: NumberedContent | None,
    read: Callable[[int], NumberedContent | None],
    device: torch.device,
) -> NumberedContent | None:
    """The newest snapshot that is whole on every rank.

    Args:
        newest: of this rank.
        read: finds this rank's newest of a step or before.
        device: where the weights are.
    """
    while True:
        step = -1 if newest is None else newest[0]
        common = smallest(step, device)
        if common < 0:
            return None
        if step > common:
            newest = read(common)
        if smallest(int(newest is not None and newest[0] == common), device):
            return newest
