"""Snapshots that are held, and when the next one is due.

What a snapshot is, the framework's side knows; here it has a step and a size.
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from dataclasses import dataclass
from typing import Generic, TypeVar

from steadygrad.errors import UsageError

Content = TypeVar("Content")

SHARE = 0.01
"""Most of a step's time that snapshots may take."""
LEAST_STRIDE, MOST_STRIDE = 10, 2000
AIM = 0.75 * SHARE
"""What a stride aims at: costs scatter, and the mean of a few may lie under what is to come."""
GROWTH = 4
"""Most factor from one stride to the next: a first snapshot's cost is a poor measure."""
ODD = 4
"""Times the usual cost over which one counts no more: the machine was busy with something else."""


@dataclass(frozen=True)
class StoredSnapshot(Generic[Content]):
    """One snapshot.

    Attributes:
        step: the step before which it was taken.
        content: the snapshot itself.
        size: bytes.
    """

    step: int
    content: Content
    size: int


class Ring(Generic[Content]):
    """The newest snapshots, as many as a number and a memory budget allow.

    Args:
        keep: most snapshots.
        memory: most bytes.

    Example:
        >>> ring = Ring(2, 100)
        >>> for step in (0, 10, 20):
        ...     ring.add(step, f"at {step}", 40)
        >>> ring.newest(15).content, ring.newest(5).content, len(ring)
        ('at 10', 'at 10', 2)
    """

    def __init__(self, keep: int, memory: int) -> None:
        self._keep, self._memory = keep, memory
        self._snapshots: list[StoredSnapshot[Content]] = []

    def __len__(self) -> int:
        return len(self._snapshots)

    def require_room(self, size: int) -> None:
        """Refuse a ring that cannot be held.

        Raises:
            UsageError: so many snapshots of this size go over the memory budget.
        """
        if size * self._keep > self._memory:
            raise UsageError(
                f"recover: {self._keep} snapshots of {size / 2**20:.1f} MiB need "
                f"{size * self._keep / 2**20:.1f} MiB, and the memory budget is "
                f"{self._memory / 2**20:.1f} MiB: type 'auto+snapshots:keep=1', or "
                f"'auto+snapshots:memory={math.ceil(size * self._keep / 2**20)}MiB' where the "
                "machine has it"
            )

    def add(self, step: int, content: Content, size: int) -> None:
        """Hold a snapshot; the oldest go where there is no room, the new one stays."""
        self._snapshots.append(StoredSnapshot(step, content, size))
        while len(self._snapshots) > 1 and (
            len(self._snapshots) > self._keep
            or sum(each.size for each in self._snapshots) > self._memory
        ):
            self._snapshots.pop(0)

    def newest(self, until: int) -> StoredSnapshot[Content] | None:
        """The newest snapshot of that step or before, else the oldest; None where none is held."""
        earlier = [each for each in self._snapshots if each.step <= until]
        return earlier[-1] if earlier else next(iter(self._snapshots), None)

    def drop_after(self, step: int) -> None:
        """Hold no snapshot of a later step."""
        self._snapshots = [each for each in self._snapshots if each.step <= step]


class SnapshotPace:
    """When the next snapshot is due.

    Args:
        stride: steps between snapshots; 0 to keep them to 1 % of the time of the steps.

    Example:
        >>> pace = SnapshotPace(0)
        >>> pace.due(0)
        True
        >>> for _ in range(8):
        ...     pace.stepped(0.1)
        >>> pace.taken(0, 0.03)
        >>> pace.stride, pace.due(39), pace.due(40)
        (40, False, True)
    """

    def __init__(self, stride: int) -> None:
        self._fixed = stride > 0
        self._seconds: deque[float] = deque(maxlen=32)
        self._costs: deque[float] = deque(maxlen=5)
        self.stride = stride or LEAST_STRIDE
        self._next = 0
        self._ended, self._cost = math.nan, 0.0

    def due(self, step: int) -> bool:
        """Whether a snapshot is to be taken before this step."""
        return step >= self._next

    def stepped(self, seconds: float) -> None:
        """A step took so long, snapshots apart."""
        self._seconds.append(seconds)

    def step_ends(self, now: float) -> None:
        """A step is over; tell the clock at the end of each, in seconds."""
        if not math.isnan(self._ended):
            self.stepped(max(now - self._ended - self._cost, 0.0))
        self._ended, self._cost = now, 0.0

    def taken(self, step: int, cost: float) -> None:
        """A snapshot was taken before this step, at that cost in seconds."""
        self._cost = cost
        self._costs.append(cost)
        if not self._fixed and self._seconds:
            most_cost = ODD * statistics.median_low(self._costs)
            usual = statistics.fmean(min(each, most_cost) for each in self._costs)
            wanted = usual / (AIM * max(statistics.median(self._seconds), 1e-9))
            most = min(GROWTH * self.stride, MOST_STRIDE)
            self.stride = min(max(math.ceil(wanted - 1e-9), LEAST_STRIDE), most)
        self._next = step + self.stride

    def agree(self, step: int, stride: int) -> None:
        """Take the stride that all ranks have agreed on."""
        self.stride, self._next = stride, step + stride
