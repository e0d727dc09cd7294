"""What each rank saw of its steps, gathered at rank 0 without a collective.

Ranks append short rows to a key of the job's own store, and rank 0 reads them when it is there:
no rank ever waits for another, and what a rank said before it died is still there. Rank 0 also
compares the norms: ranks that clip by different ones train different models.
"""

from __future__ import annotations

import contextlib
import json
import math
import struct
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch

from steadygrad.elastic import restarts
from steadygrad.runlog.sampled import due
from steadygrad.torch.distributed.exchange import TOLERANCE
from steadygrad.torch.internals.private import job_store, process_group

SEGMENT = 64
"""Steps that share one key of the store."""
SECONDS = 1.0
"""Between two messages of one rank."""
MOST_RANKS = 64
"""With more ranks than this, only the steps of `first_ones` are told."""
_ROW = struct.Struct("<Iqdddqdd?")


class RankRow(NamedTuple):
    """One step of one rank.

    Attributes:
        rank: of the process.
        step: number of the step.
        norm: total norm that the rank clipped by.
        own_norm: norm of the gradients that it holds, before they were joined with the others'.
        loss: its own loss.
        nonfinite: NaN and inf elements in the gradients that it holds.
        seconds: since its last step; NaN for the first.
        busy: of these, the seconds that it spent by itself; see `pace`.
        loss_known: whether somebody told its loss, so that NaN is one.
    """

    rank: int
    step: int
    norm: float
    own_norm: float
    loss: float
    nonfinite: int
    seconds: float
    busy: float
    loss_known: bool


@dataclass
class Board:
    """One rank's way to the others.

    Args:
        store: of the process group.
        rank: of this process.
        ranks: number of processes.
        name: of the optimizer whose steps are told.

    Attributes:
        lost: the store did not answer: the process that held it is gone.

    Example:
        >>> store = torch.distributed.HashStore()
        >>> first, second = Board(store, 0, 2, "a"), Board(store, 1, 2, "a")
        >>> second.tell(RankRow(1, 0, 2.0, 1.5, 0.5, 0, 0.1, 0.05, True))
        >>> second.send()
        >>> [row.loss for row in first.arrived()]
        [0.5]
    """

    store: Any
    rank: int
    ranks: int
    name: str
    lost: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        self._waiting: dict[int, list[bytes]] = {}
        self._sent = 0.0
        self._read: dict[int, int] = {}
        self._oldest = self._newest = 0
        self._posts_read = 0
        self._post_bytes = 0

    def tell(self, row: RankRow) -> None:
        """Keep a row until it is sent."""
        self._waiting.setdefault(row.step // SEGMENT, []).append(_ROW.pack(*row))
        self._newest = max(self._newest, row.step // SEGMENT)

    def wants(self, step: int) -> bool:
        """Whether a step is told: all of them, but of many ranks only some."""
        return self.ranks <= MOST_RANKS or first_ones(step)

    def due(self, step: int) -> bool:
        """Whether it is time for a message; at the latest where the next segment begins."""
        return first_ones(step) or step % SEGMENT == 0 or time.monotonic() - self._sent >= SECONDS

    def send(self) -> None:
        """Send what is kept; a store that is gone takes it nowhere."""
        self._sent = time.monotonic()
        try:
            for segment, rows in self._waiting.items():
                self.store.append(self._key(segment), b"".join(rows))
        except Exception:  # the process that held it is gone, or it cannot append
            self.lost = True
        self._waiting.clear()

    def arrived(self) -> Iterator[RankRow]:
        """Rows that came since the last call, of any rank; asks the store, waits for nobody.

        What lies two segments back, all ranks have sent: it is read a last time, and deleted.
        """
        for segment in range(self._oldest, self._newest + 2):
            key, over = self._key(segment), segment < self._newest - 1
            try:
                data = self.store.get(key) if self.store.check([key]) else b""
            except Exception:
                self.lost = True
                return
            begin = self._read.pop(segment, 0)
            end = len(data) - len(data) % _ROW.size
            if over:
                self._oldest = segment + 1
                with contextlib.suppress(Exception):  # not every store can
                    self.store.delete_key(key)
            else:
                self._read[segment] = end
            yield from (RankRow(*row) for row in _ROW.iter_unpack(data[begin:end]))

    def post(self, kind: str, data: Mapping[str, object], step: int | None) -> None:
        """Hand an event to rank 0, which writes it; a store that is gone takes it nowhere."""
        line = json.dumps([kind, {**data, "rank": self.rank}, step]) + "\n"
        try:
            self.store.append(self._key("posts"), line.encode())
            self.store.add(self._key("count"), 1)
        except Exception:  # as in `send`
            self.lost = True

    def posts(self) -> Iterator[tuple[str, dict[str, Any], int | None]]:
        """Events that other ranks handed over since the last call; waits for nobody."""
        try:
            count = self.store.add(self._key("count"), 0)
            data = self.store.get(self._key("posts")) if count > self._posts_read else b""
        except Exception:
            self.lost = True
            return
        lines = data[self._post_bytes :].split(b"\n")[:-1]
        self._posts_read += len(lines)
        self._post_bytes += sum(len(line) + 1 for line in lines)
        yield from (tuple(json.loads(line)) for line in lines)

    def end(self) -> None:
        """Say that this rank has sent its last row."""
        try:
            self.store.add(self._key("ended"), 1)
        except Exception:  # as in `send`
            self.lost = True

    def all_ended(self) -> bool:
        """Whether all ranks have said so."""
        try:
            return int(self.store.add(self._key("ended"), 0)) >= self.ranks
        except Exception:  # as in `send`
            self.lost = True
            return True

    def _key(self, part: int | str) -> str:
        return f"steadygrad/{restarts()}/{self.name}/{part}"


def first_ones(step: int) -> bool:
    """Steps 0, 1, 2, 4, 8, ..., every 64th, and later every 256th."""
    return due(step, SEGMENT)


def is_job() -> bool:
    """Whether this process trains together with others, as far as torch knows."""
    here = torch.distributed
    return process_group() is not None and here.is_initialized() and here.get_world_size() > 1


def is_first_rank() -> bool:
    """Whether this is rank 0 of a job, or no job."""
    return not is_job() or torch.distributed.get_rank() == 0


_trainings: Counter[str] = Counter()
"""Name of an optimizer -> trainings of this process that had one of that name."""


def board_of(name: str) -> Board | None:
    """A board for this job; None outside of one.

    Trainings that follow each other in one job have boards of their own: every rank counts them,
    and all ranks run the same trainings in the same order.
    """
    if not is_job():
        return None
    _trainings[name] += 1
    rank, ranks = torch.distributed.get_rank(), torch.distributed.get_world_size()
    return Board(job_store(), rank, ranks, f"{name}.{_trainings[name]}")


def job_board() -> Board | None:
    """The board of the whole process, on which ranks tell how they ended; None outside a job."""
    if not is_job():
        return None
    return Board(
        job_store(), torch.distributed.get_rank(), torch.distributed.get_world_size(), "job"
    )


def disagreement(rows: list[RankRow], in_backward: bool = False) -> str:
    """A sentence on ranks that clipped the same step by different norms; empty for none.

    Args:
        rows: of several ranks and steps.
        in_backward: the optimizer steps inside the backward pass.

    Example:
        >>> disagreement([RankRow(r, 3, 4.0 + r, 4, 0, 0, 1, 1, True) for r in (0, 1)])[:60]
        'step 3: rank 0 has a gradient norm of 4 and rank 1 one of 5:'
    """
    first: dict[int, RankRow] = {}
    for row in sorted(rows):
        other = first.setdefault(row.step, row)
        apart = abs(row.norm - other.norm)
        broken = math.isfinite(row.norm) != math.isfinite(other.norm)  # one skips, one does not
        if row.rank != other.rank and (broken or apart > TOLERANCE * max(row.norm, other.norm)):
            difference = (
                f"step {row.step}: rank {other.rank} has a gradient norm of {other.norm:.6g} and "
                f"rank {row.rank} one of {row.norm:.6g}: if they train one model, each clips by "
                "its own norm and the copies drift apart. "
            )
            return difference + (_IN_BACKWARD if in_backward else _WHAT_TO_DO)
    return ""


_WHAT_TO_DO = (
    "Average gradients over the ranks before the step (DDP does); or, where ranks have parameters "
    "of their own (experts, pipeline stages), type attach(..., process_group={'experts.*': group})"
)
_IN_BACKWARD = (
    "This optimizer steps inside backward(), before DistributedDataParallel has averaged the "
    "gradients: call step() after backward(), or shard with torch.distributed.fsdp.fully_shard, "
    "which reduces first"
)
