"""One optimizer's steps as every rank of the job saw them, on their way to the first rank's file.

While a job trains no rank waits for another. At the end the first rank waits a moment for the
rows of the others' last steps: they send those when they end, too.
"""

from __future__ import annotations

import atexit
import math
import os
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

from steadygrad.runlog.records import StepRecord
from steadygrad.stats import GradientStats
from steadygrad.torch.distributed.board import Board, RankRow, board_of, disagreement, is_job
from steadygrad.torch.distributed.exchange import Tell, warn_of_replicas
from steadygrad.torch.distributed.pace import measure_pace
from steadygrad.torch.internals.sites import inside_backward
from steadygrad.vocabulary import RANKS

PATIENCE = 5.0
"""Most seconds that the first rank waits, at the end, for rows of the other ranks."""
POLL = 0.01
"""Seconds between two looks at the store."""
_unfinished: set[RankLog] = set()
"""Also those of optimizers that are gone: rows of the other ranks may be under way."""

WriteEvent = Callable[[str, Mapping[str, Any], int | None], None]
"""Puts an event on record: its kind, its data, its step."""


class RankLog:
    """Tells the first rank of this rank's steps and events, and there puts them on record.

    Args:
        index: number of the optimizer within the run.
        write_event: of the run file; None where this process has none.

    Attributes:
        tell: given a sentence where ranks clip by different norms.
    """

    def __init__(self, index: int, write_event: WriteEvent | None) -> None:
        self.tell: Tell = warn_of_replicas
        self._index = index
        self._write_event = write_event
        self._board = board_of(str(index))
        self._pace = None if self._board is None else measure_pace(self)
        self._busy = 0.0
        self._before = math.nan
        self._last_told = -1
        self._arrived: dict[int, int] = {}
        self._differs = False
        self._in_backward = False
        self._unmatched: list[RankRow] = []
        self._process = os.getpid()
        if not _unfinished:
            atexit.register(finish_ranks)
        _unfinished.add(self)

    def share(self, record: StepRecord, stats: GradientStats) -> None:
        """Tell the first rank of a step; waits for nobody."""
        board = self._board
        if board is None or self._pace is None:
            return
        self._in_backward = inside_backward()
        seconds, self._before = record.time - self._before, record.time
        busy = self._pace.busy()
        spent, self._busy = busy - self._busy, busy
        if board.wants(record.step):
            own = (
                (record.norm, record.nonfinite)
                if stats.own is None
                else tuple(map(float, stats.own))
            )
            row = RankRow(
                rank=board.rank,
                step=record.step,
                norm=record.norm,
                own_norm=own[0],
                loss=record.loss,
                nonfinite=int(own[1]),
                seconds=seconds,
                busy=spent,
                loss_known=record.loss_told,
            )
            board.tell(row)
            self._last_told = record.step
        if board.due(record.step):
            self._exchange(board)

    def post(self, kind: str, data: Mapping[str, object], step: int | None) -> None:
        """Hand an event to the first rank, which has the run file."""
        if self._board is not None and self._board.rank:
            self._board.post(kind, data, step)

    def finish(self, patience: float | None = None) -> None:
        """Send what is left; the first rank waits a moment for the others' last rows.

        Args:
            patience: most seconds to wait; None for `PATIENCE`, and for 0 while an exception is on
                its way: then the other ranks may be waiting for this one.
        """
        _unfinished.discard(self)
        board, self._board = self._board, None
        if board is None or self._process != os.getpid():  # a forked child: not its to tell
            return
        until = time.monotonic() + (_patience() if patience is None else patience)
        board.send()
        board.end()
        ended = board.all_ended()  # asked first: then all their rows are there to be read
        self._exchange(board)
        while not ended and self._misses(board) and time.monotonic() < until:
            time.sleep(POLL)
            ended = board.all_ended()
            self._exchange(board)

    def _misses(self, board: Board) -> bool:
        """Whether this is the first rank, and rows of the last step are still under way."""
        if board.rank or board.lost:
            return False
        return any(self._arrived.get(rank, -1) < self._last_told for rank in range(board.ranks))

    def _exchange(self, board: Board) -> None:
        board.send()
        if board.rank:
            return
        rows = list(board.arrived())
        self._arrived.update((row.rank, row.step) for row in rows)
        if rows and self._write_event is not None:
            columns = zip(RankRow._fields, zip(*rows, strict=True), strict=True)
            data = {key: list(column) for key, column in columns}
            self._write_event(RANKS, {**data, "optimizer": self._index}, None)
        for kind, data, step in board.posts():
            if self._write_event is not None:
                self._write_event(kind, data, step)
        rows_of_steps = [*self._unmatched, *rows]
        sentence = "" if self._differs else disagreement(rows_of_steps, self._in_backward)
        self._unmatched = rows[-4 * board.ranks :]
        if sentence:
            self._differs = True
            self.tell(sentence)


def rank_log(index: int, write_event: WriteEvent | None) -> RankLog | None:
    """The log of an optimizer; None in a process that trains alone.

    Args:
        index: number of the optimizer within the run.
        write_event: of the run file; None where this process has none.
    """
    return RankLog(index, write_event) if is_job() else None


def finish_ranks() -> None:
    """Finish the log of every optimizer; all of them together wait no longer than one."""
    until = time.monotonic() + _patience()
    for log in list(_unfinished):
        log.finish(max(until - time.monotonic(), 0.0))


def _patience() -> float:
    failing = sys.exc_info()[0] is not None or getattr(sys, "last_value", None) is not None
    return 0.0 if failing else PATIENCE
