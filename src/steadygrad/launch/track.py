"""One optimizer's steps on their way into the run file, as rows of figures.

Code that is traced (TensorFlow, JAX) hands its figures out as one row of numbers a step; what a
row cannot hold, where clip calls stand and what they are called, is known when the code is
traced, and stays here under the number that the row carries.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from steadygrad.launch.arithmetic_clips import STEP, ArithmeticClips
from steadygrad.launch.placements import CallTime, PlacementTable
from steadygrad.runlog.clip_calls import CallBook
from steadygrad.runlog.records import StepRecord, TensorInfo
from steadygrad.vocabulary import ACTIONS, FIGURES

if TYPE_CHECKING:
    from steadygrad.launch.contracts import RunContext
    from steadygrad.runlog import RunWriter

BATCH = ("loss", "lr", "loss_scale", "kind", "place")
"""What every micro-batch tells: ``kind`` is one of the three below, ``place`` the number of the
`Placement`s that its trace has."""
CALL = ("max_norm", "norm", "coef")
MOST_CALLS = 4
"""So many clip calls a step have figures."""
MOST_HELD = 8
"""So many moves by hand may come with each step of an optimizer."""
WAITS, STEPS, DROPPED, BEFORE = 0, 1, 2, 3
"""What a micro-batch is: one that is added up, the last of a window, one left out of it. The last
is none: it tells of the gradients that those of the next row were made of by arithmetic."""

HEAD_WIDTH = len(BATCH) + MOST_CALLS * len(CALL)


def body_width(tensors: int) -> int:
    """Numbers in a row after its head: the step's, and those of each tensor."""
    return len(STEP) + len(FIGURES) * tensors


class DeviceRows(Protocol):
    """Rows that wait on a device until they are read."""

    def read(self) -> list[NDArray[np.float64]]:
        """The rows since the last call."""

    def stop_reading(self) -> None:
        """End the thread that reads."""


class OptimizerBook:
    """What the optimizers of a run share in its file: their list, and the script's clip calls.

    Args:
        session: the run.

    Attributes:
        session: the run.
        calls: counts clip calls.
    """

    def __init__(self, session: RunContext) -> None:
        self.session = session
        self.calls = CallBook()

    @property
    def next_index(self) -> int:
        """The number of the next optimizer."""
        return self.session.optimizers.next_index

    def enter(self, kind: str, facts: Mapping[str, object]) -> int:
        """List a new optimizer.

        Args:
            kind: name of its class.
            facts: what the run file says of the framework.

        Returns:
            Its number within the run.
        """
        return self.session.optimizers.enter(kind, facts=facts)

    def finish(self) -> None:
        """Write the counts of clip calls."""
        summary = self.calls.summary()
        if summary:
            self.session.optimizers.count_clips(summary)


def record_of(
    step: int,
    optimizer: int,
    numbers: Mapping[str, float],
    figures: NDArray[np.float64],
    loss_told: bool = False,
) -> StepRecord:
    """A step as the run file has it.

    Args:
        step: its number.
        optimizer: that of its optimizer.
        numbers: ``loss``, ``lr`` and those of `STEP`, by name; ``loss_scale`` and ``time`` where
            they are known.
        figures: of the tensors, ``[figures, tensors]``; NaN for tensors without a gradient.
        loss_told: somebody told the loss, so that a NaN is what it was.
    """
    nonfinite = figures[FIGURES.index("nonfinite")]
    count = nonfinite.sum()
    return StepRecord(
        step=step,
        time=numbers.get("time") or time.time(),
        loss=numbers["loss"],
        norm=numbers["norm"],
        threshold=numbers["threshold"],
        coef=numbers["coef"],
        cosine=numbers["cosine"],
        action=ACTIONS[int(numbers["action"])],
        lr=numbers["lr"],
        loss_scale=numbers.get("loss_scale", 1.0),
        nonfinite=int(count if count == count else np.nan_to_num(nonfinite).sum()),
        optimizer=optimizer,
        loss_told=loss_told,
    )


class Track:
    """One optimizer's steps on their way into the run file.

    Args:
        session: the run.
        infos: the optimizer's tensors.
        index: its number within the run.
        variables: its variables, in the order of ``infos``.
        settle: waits until every row that is under way has arrived.
        book: counts clip calls.

    Attributes:
        steps: how many have been taken.
        ring: where rows wait; None where they are handed over at once.
        ids: the tensors' numbers in the run file; None before the first step.
        placements: the clip calls that rows refer to.
        arithmetic: tells clips that are no calls.
    """

    def __init__(
        self,
        session: RunContext,
        infos: list[TensorInfo],
        index: int,
        variables: Sequence[object],
        settle: Callable[[], None],
        book: CallBook,
    ) -> None:
        self.infos, self.index, self.steps = infos, index, 0
        self.variables = list(variables)
        self.ring: DeviceRows | None = None
        self.ids: NDArray[np.int64] | None = None
        self._session, self._settle, self._book = session, settle, book
        self.placements = PlacementTable()
        self.arithmetic = ArithmeticClips(infos)
        self._was: NDArray[np.float64] | None = None
        self._rows: deque[NDArray[np.float64]] = deque()
        self._losses: list[float] = []
        self._calls: list[tuple[int, int, NDArray[np.float64]]] = []
        self._batches = 0
        self._lock = threading.Lock()

    @property
    def writer(self) -> RunWriter | None:
        """The run file's; None where there is none."""
        return self._session.writer()

    def settled(self) -> int:
        """How many steps have been taken, once all of them are written."""
        self._settle()
        self.drain()
        return self.steps

    def push(self, row: ArrayLike) -> None:
        """Take a row, or several behind each other; from whichever thread the backend has."""
        rows = np.asarray(row, np.float64)
        self._rows.extend(rows.reshape(-1, HEAD_WIDTH + body_width(len(self.infos))))
        self.drain()

    def drain(self) -> None:
        """Write the rows that have come, in order."""
        with self._lock:
            if self.ring is not None:
                self._rows.extend(self.ring.read())
            while self._rows:  # called from threads that no error may end
                row = self._rows.popleft()
                self._session.guarded("a step is not recorded", self._sort, row)

    def finish(self) -> None:
        """Write what the device still holds."""
        if self.ring is not None:
            self.ring.stop_reading()
        self.drain()

    def _sort(self, row: NDArray[np.float64]) -> None:
        """Tell a step from a micro-batch, and keep or write it."""
        head = dict(zip(BATCH, row[: len(BATCH)].tolist(), strict=True))
        kind, place = int(head.pop("kind")), int(head.pop("place"))
        if kind == BEFORE:
            self._was = row[HEAD_WIDTH:]
            return
        self._batches += 1
        if kind != DROPPED:
            self._losses.append(head["loss"])
            self._calls.append((self._batches, place, row[len(BATCH) : HEAD_WIDTH]))
        if kind == STEPS:  # a step's loss is the mean of its micro-batches'
            head["loss"], self._losses = sum(self._losses) / len(self._losses), []
        if kind != WAITS:
            self._write_step(head, row[HEAD_WIDTH:])
        if kind == STEPS:
            body = dict(zip(STEP, row[HEAD_WIDTH:].tolist(), strict=False))
            self._write_calls(self.steps - 1, [body["norm"], body["coef"]])

    def _write_step(self, head: dict[str, float], body: NDArray[np.float64]) -> None:
        writer = self.writer
        step, self.steps = self.steps, self.steps + 1
        before, self._was = self._was, None
        if before is not None:
            body = self.arithmetic.judged(before, body)
        if writer is None:
            return
        if self.ids is None:
            self.ids = np.asarray(writer.add_tensors(self.infos), np.int64)
        numbers = dict(zip(STEP, body[: len(STEP)].tolist(), strict=True))
        figures = body[len(STEP) :].reshape(len(FIGURES), len(self.infos))
        record = record_of(step, self.index, {**head, **numbers}, figures)
        there = ~np.isnan(figures[FIGURES.index("zeros")])
        writer.write_step(record, self.ids[there], *figures[:, there])

    def _write_calls(self, step: int, outcome: Sequence[float]) -> None:
        """Write the clip calls before a step, whose norm and coefficient are ``outcome``."""
        calls, self._calls, self._batches = self._calls, [], 0
        for batch, place, numbers in calls:
            rows = iter(numbers.reshape(MOST_CALLS, len(CALL)).tolist())
            for placement in self.placements.at(place):
                if placement.own and batch < calls[-1][0]:
                    continue  # the optimizer clips the sum, once
                row = [placement.max_norm, math.nan, 1.0]
                if placement.own:
                    row = [placement.max_norm, *(outcome if placement.depth == 0 else row[1:])]
                elif not placement.without_effect:
                    row = next(rows, row)
                figures = dict(zip(CALL, row, strict=True))
                behind = self.placements.is_behind(place, placement)
                turn = CallTime(step + behind, self.index, batch)
                placement.enter(self._book, self.writer, turn, figures)


class TentativeTrack(Track):
    """Moves of variables that are steps only where no optimizer moves the same variables as well.

    A loop may move its variables to another point, ask for gradients there, and hand those to an
    optimizer, as SAM does: whether it has one shows after the first moves.
    """

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._undecided: deque[NDArray[np.float64]] = deque(maxlen=MOST_HELD + 1)
        self._optimizers: Sequence[Track] = ()
        self._moves, self._before = 0, -1

    def beside(self, optimizers: Sequence[Track]) -> None:
        """Note the tracks of optimizers that move the same variables; called first when it begins.

        Args:
            optimizers: all that are known by now.
        """
        self._optimizers = optimizers
        if self._before < 0:
            self._before = self._taken()

    def drain(self) -> None:
        """Write the rows that have come, in order, unless they are an optimizer's business."""
        for track in self._optimizers:
            track.drain()
        super().drain()

    def finish(self) -> None:
        """Write what the device still holds, and what was held back."""
        super().finish()
        if self._taken() == self._before:
            self._write_undecided()

    def _taken(self) -> int:
        return sum(track.steps for track in self._optimizers)

    def _sort(self, row: NDArray[np.float64]) -> None:
        self._moves += 1
        self._undecided.append(row)
        if self._moves > MOST_HELD * (1 + self._taken() - self._before):
            self._write_undecided()

    def _write_undecided(self) -> None:
        while self._undecided:
            super()._sort(self._undecided.popleft())


AnyTrack = TypeVar("AnyTrack", bound=Track)


class Tracks:
    """All tracks of one process; tells the run file which optimizers there are.

    Args:
        session: the run.
    """

    def __init__(self, session: RunContext) -> None:
        self._session = session
        self._all: list[Track] = []
        self._book = OptimizerBook(session)

    @property
    def steps(self) -> int:
        """Steps taken so far."""
        return sum(track.steps for track in self._all)

    @property
    def begun(self) -> bool:
        """Whether there is one."""
        return bool(self._all)

    @property
    def next_index(self) -> int:
        """The number of the next optimizer."""
        return self._book.next_index

    def add(
        self,
        kind: str,
        infos: list[TensorInfo],
        variables: Sequence[object],
        settle: Callable[[], None],
        facts: Mapping[str, object],
        kind_of_track: type[AnyTrack],
    ) -> AnyTrack:
        """A new optimizer.

        Args:
            kind: name of its class.
            infos: its tensors, which name `next_index` as their optimizer.
            variables: its variables, in the order of ``infos``.
            settle: waits until every row that is under way has arrived.
            facts: what the run file says of the framework.
            kind_of_track: `Track`, or `TentativeTrack`.

        Returns:
            Its track.
        """
        index = self._book.enter(kind, facts)
        writer = self._session.writer()
        if writer is not None:  # figures are made by the script's own steps, compiled or not
            writer.overhead_seconds = math.nan
        track = kind_of_track(self._session, infos, index, variables, settle, self._book.calls)
        self._all.append(track)
        return track

    def finish(self) -> None:
        """Write what the devices still hold, and the counts of clip calls."""
        for track in self._all:
            self._session.guarded("the last steps are not recorded", track.finish)
        if self.steps:
            self._book.finish()
