"""Steps whose figures are still on a device, on their way to the host.

Reading a figure would stop the host until the device has caught up, at every step. So a
step's figures are packed into one tensor, copied into pinned memory without waiting, and
looked at some steps later, when an event says that they have arrived.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from steadygrad.policies.in_numpy import scalar
from steadygrad.runlog.records import StepRecord
from steadygrad.stats import GradientStats
from steadygrad.vocabulary import FIGURES

MOST = 256
"""Steps under way before one is waited for, so that a slow device cannot fill the host."""

Delivery = tuple[StepRecord, GradientStats, "list[int] | None"]


@dataclass(frozen=True)
class Parcel:
    """One step under way.

    Attributes:
        record: the step, with what the host knows.
        scalars: names of the record's fields that come from the device, in order.
        stats: figures on the device.
        present: as `hand_over` wants it.
        buffer: where all figures arrive: the scalars, this rank's own two, four rows of tensors.
        arrived: says when; None where they are there already.
    """

    record: StepRecord
    scalars: tuple[str, ...]
    stats: GradientStats
    present: list[int] | None
    buffer: torch.Tensor
    arrived: Any

    def opened(self) -> tuple[StepRecord, GradientStats]:
        """The step with its figures as NumPy; waits for them."""
        if self.arrived is not None:
            self.arrived.synchronize()
        values: NDArray[np.float64] = self.buffer.numpy()
        count = len(self.scalars)
        fields: dict[str, Any] = dict(zip(self.scalars, values[:count].tolist(), strict=True))
        own = None if self.stats.own is None else values[count : count + 2]
        rows = values[count + (own is not None) * 2 :].reshape(len(FIGURES), -1)
        norms, max_abs, nonfinite, zeros = rows
        clipped, skipped = fields.pop("clipped", 0.0), fields.pop("skip", 0.0)
        fields["action"] = "skip" if skipped else "clip" if clipped else self.record.action
        fields["nonfinite"] = int(nonfinite.sum())
        stats = replace(
            self.stats,
            norms=norms,
            max_abs=max_abs,
            nonfinite=nonfinite.astype(np.int64),
            zeros=zeros.astype(np.int64),
            total_norm=scalar(fields["norm"]),
            own=own,
        )
        return replace(self.record, **fields), stats


class Outbox:
    """Steps on their way.

    Attributes:
        under_way: them, in order.
    """

    def __init__(self) -> None:
        self.under_way: deque[Parcel] = deque()

    def send(
        self,
        record: StepRecord,
        scalars: dict[str, Any],
        stats: GradientStats,
        present: list[int] | None,
    ) -> None:
        """Start a step on its way; nothing is waited for.

        Args:
            record: the step, with what the host knows.
            scalars: 0-d tensors on the device, by the record's field, ``clipped`` and ``skip``.
            stats: figures on the device.
            present: as `hand_over` wants it.
        """
        parts = [value.reshape(1) for value in scalars.values()]
        parts += [] if stats.own is None else [stats.own]
        parts += [getattr(stats, name) for name in FIGURES]
        packed = torch.cat([part.to(torch.float64) for part in parts])
        buffer, arrived = _start_copy(packed)
        self.under_way.append(Parcel(record, tuple(scalars), stats, present, buffer, arrived))

    def take(self, wait: bool = False) -> Iterator[Delivery]:
        """The steps that have arrived, each once.

        Args:
            wait: for all of them; otherwise only the steps beyond `MOST` are waited for.
        """
        while self.under_way:
            first = self.under_way[0]
            there = first.arrived is None or first.arrived.query()
            if not (wait or there or len(self.under_way) > MOST):
                return
            parcel = self.under_way.popleft()
            yield (*parcel.opened(), parcel.present)


def _start_copy(packed: torch.Tensor) -> tuple[torch.Tensor, object]:
    if packed.device.type != "cuda":
        return packed.cpu(), None
    buffer = torch.empty(packed.shape, dtype=packed.dtype, pin_memory=True)
    buffer.copy_(packed, non_blocking=True)
    arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
    arrived.record()
    return buffer, arrived
