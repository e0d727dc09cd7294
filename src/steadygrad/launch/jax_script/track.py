"""One optimizer's steps on their way from the device into the run file."""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from steadygrad.launch.jax_script.acting import HostMemory
from steadygrad.launch.jax_script.losses import Losses, Reference, reference
from steadygrad.launch.jax_script.telling import Moment
from steadygrad.launch.placements import CallTime, Placement
from steadygrad.launch.track import OptimizerBook, record_of
from steadygrad.runlog.facts import versions_of
from steadygrad.runlog.info import LoopCounts
from steadygrad.runlog.items import StepItem
from steadygrad.runlog.records import StepRecord, TensorInfo
from steadygrad.vocabulary import FIGURES

if TYPE_CHECKING:
    import jax
    from jax.typing import ArrayLike

    from steadygrad.launch.contracts import RunContext
    from steadygrad.runlog import RunWriter

STEP = ("norm", "threshold", "coef", "cosine", "action")
HEAD = ("steps", "device", "loss", "told", "lr", "count", *STEP)
"""What comes before the figures of the tensors; ``steps`` is 0 for a micro-batch, ``told`` 1
where the row holds its own loss, ``count`` how many steps the optimizer's state has taken."""
APART = 1e-4
"""Relative difference between devices from which their norms are not one norm."""

NOTHING: Mapping[str, float] = {}

Head = dict[str, float]
Figures = npt.NDArray[np.float64]


class Book(OptimizerBook):
    """The run file as several optimizers of optax share it.

    Args:
        session: the run.
        losses: those of the script.

    Attributes:
        losses: those of the script.
        lock: lets one thread of JAX in at a time.
    """

    def __init__(self, session: RunContext, losses: Losses) -> None:
        super().__init__(session)
        self.losses = losses
        self.lock = threading.RLock()


class UndecidedStep(NamedTuple):
    """A step whose gradients or loss are not finite, until the next one tells what became of it.

    Attributes:
        record: it, as if it were taken.
        figures: of its tensors.
        taken: how many steps the state had taken that it stepped on; NaN where that is not known.
        is_whole: no element of any gradient is finite.
    """

    record: StepRecord
    figures: Figures
    taken: float
    is_whole: bool

    def resolved(self, after: StepRecord | None, taken: float) -> StepRecord:
        """The record: of a step that was dropped, where the next one shows that.

        Args:
            after: the next one; None where none followed.
            taken: of that, as above.
        """
        unmoved = taken == self.taken  # the state did not move on
        if math.isnan(self.taken):  # weights without a finite element give no finite gradient
            unmoved = self.is_whole and after is not None and _is_finite(after)
        return replace(self.record, action="skip") if unmoved else self.record


class Arrival(NamedTuple):
    """What the host knows of a row when its step is traced.

    Attributes:
        fixed: figures in place of the row's.
        placed: the script's clip calls.
        behind: those that come after the step, in the code that is traced with it.
        devices: how many of this process tell a row at each step.
        fresh: the state that it steps on is made by the same compiled code, before the step.
        each: they are made at every micro-batch, since they stand before `optax.MultiSteps`.
        renews: rows before it are of moves to where its gradients were made, and no micro-batches.
    """

    fixed: Mapping[str, float] = NOTHING
    placed: tuple[Placement, ...] = ()
    behind: Sequence[Placement] = ()
    devices: int = 1
    fresh: bool = False
    each: bool = False
    renews: bool = False


class JaxTrack:
    """One optimizer's steps.

    Args:
        book: the run file.
        kind: the optimizer's name.
        infos: its tensors, in the order of a row's figures.

    Attributes:
        steps: how many have been taken.
        renewed: how many of them were the first of a state that had just been made.
        unmoved: how many were given the very weights of the step before.
        raw: names of the tensors whose gradients it hands on as updates.
        start: norms and standard deviations of the weights before the first; None where unknown.
        memory: that of a policy of ours, or None.
        late: clip calls behind an eager step, which are told with the next one.
    """

    def __init__(self, book: Book, kind: str, infos: list[TensorInfo]) -> None:
        self.steps = 0
        self.renewed = self.unmoved = 0
        self.raw: list[str] = []
        self._ended: list[LoopCounts] = []
        self._weights: list[Reference] = []
        self.kind = kind
        self.memory: HostMemory | None = None
        self.late: list[Placement] = []
        self.start: tuple[Figures, Figures] | None = None
        self._book, self._infos = book, infos
        self._index = -1
        self._ids: npt.NDArray[np.int64] | None = None
        self._part = self._since_made = 0
        self._queues: dict[int, deque[tuple[Head, Figures]]] = {}
        self._micro: list[float] = []
        self._calls: list[tuple[Head, tuple[Placement, ...]]] = []
        self._undecided: UndecidedStep | None = None

    def begins_anew(self, has_memory: bool) -> None:
        """The optimizer's state was made again: what comes is another training.

        Not so where the state before has made one step alone: it is made at every step.

        Args:
            has_memory: whether there is anything in it, as of plain SGD there is not.
        """
        self.release()
        if self._since_made == 1:
            self.renewed += has_memory
        elif self._part:
            self._ended, self.renewed, self.unmoved = self.loop_counts, 0, 0
            self._index, self._ids, self._part = -1, None, 0
        self._since_made = 0

    def steps_on(self, weights: Sequence[jax.Array]) -> None:
        """Note what an eager step was given as weights: arrays that never change.

        Args:
            weights: the arrays; none where the script hands over none.
        """
        if weights and len(weights) == len(self._weights):
            pairs = zip(self._weights, weights, strict=True)
            self.unmoved += all(ref() is leaf for ref, leaf in pairs)
        self._weights = [reference(leaf) for leaf in weights]

    @property
    def loop_counts(self) -> list[LoopCounts]:
        """What the run file says of the script's loop, of each training that has something."""
        if not self.renewed and not self.unmoved and not self.raw:
            return self._ended
        count: LoopCounts = {
            "index": self._index,
            "renewed": self.renewed,
            "unmoved": self.unmoved,
            "raw": self.raw,
        }
        return [*self._ended, count]

    def arrive(self, bits: ArrayLike, moment: Moment, arrival: Arrival) -> None:
        """A row has come to the host; called from a thread of JAX or ours: no error may reach it.

        Args:
            bits: the row, float64 as pairs of uint32.
            moment: when it was told.
            arrival: what the host knows beside it.
        """
        try:
            row = np.ascontiguousarray(np.asarray(bits)).view(np.float64).ravel()
            numbers = dict(zip(HEAD, row[: len(HEAD)].tolist(), strict=True))
            head = {**numbers, **arrival.fixed, "time": moment.time, "number": moment.number}
            with self._book.lock, np.errstate(all="ignore"):  # figures may be inf
                self._sort(head, row[len(HEAD) :].reshape(len(FIGURES), -1), arrival)
        except Exception as error:
            self._book.session.trouble("a JAX step is not recorded", error)

    def _sort(self, head: Head, figures: Figures, arrival: Arrival) -> None:
        """Take a row, once all devices of a `pmap` or `shard_map` have told theirs."""
        if head["number"] < math.inf:  # by the queue come those of one device
            self._take(head, figures, arrival)
            return
        queue = self._queues.setdefault(int(head["device"]), deque())
        queue.append((head, figures))
        if len(self._queues) < arrival.devices or not all(self._queues.values()):
            return
        rows = [self._queues[device].popleft() for device in sorted(self._queues)]
        norms = np.array([head["norm"] for head, _ in rows])
        if np.ptp(norms) > APART * norms[0]:
            self._book.session.mention(
                "gradients differ between the devices of a pmap or shard_map when the optimizer "
                "is called; those of the first device are on record. Where all devices hold the "
                "same weights, average first: grads = jax.lax.pmean(grads, axis_name)"
            )
        losses = [head["loss"] for head, _ in rows]
        self._take({**rows[0][0], "loss": float(np.mean(losses))}, rows[0][1], arrival)

    def _take(self, head: Head, figures: Figures, arrival: Arrival) -> None:
        if arrival.renews:
            self._micro = []
        if head["told"]:
            self._micro.append(head["loss"])
        if arrival.each or head["steps"]:
            self._calls.append((head, arrival.placed))
        if head["steps"]:
            self.renewed += arrival.fresh
            self._write(head, figures, arrival.behind)
            self._calls = []

    def _write(self, head: Head, figures: Figures, behind: Sequence[Placement]) -> None:
        arrived = self._book.losses.since(head["number"])
        step, self._part, self._since_made = self._part, self._part + 1, self._since_made + 1
        self.steps += 1
        writer = self._book.session.writer()
        if writer is None:
            return
        if self._ids is None:
            facts = {"framework": "jax", "versions": versions_of("jax", "optax", "numpy")}
            writer.overhead_seconds = math.nan  # figures are made by the script's own steps
            self._index = self._book.enter(self.kind, facts)
            infos = [
                TensorInfo(i.name, i.shape, i.dtype, optimizer=self._index) for i in self._infos
            ]
            self._ids = np.asarray(writer.add_tensors(infos), np.int64)
        losses, self._micro = self._micro or [arrived], []
        loss = losses[0] if len(losses) == 1 else float(np.mean(losses))
        has_loss = bool(head["told"]) or loss == loss
        record = record_of(step, self._index, {**head, "loss": loss}, figures, has_loss)
        self.release(record, head["count"])
        if record.action == "none" and not _is_finite(record):
            elements = sum(math.prod(info.shape) for info in self._infos)
            whole = record.nonfinite == elements
            self._undecided = UndecidedStep(record, figures, head["count"], whole)
        else:
            writer.hand_over(StepItem(record, record.time, self._ids, *figures))
        for batch, (figures_of, placed) in enumerate(self._calls, 1):
            turn = CallTime(step, self._index, batch)
            for placement in placed:
                self._write_call(writer, placement, turn, len(placed), figures_of)
        for placement in behind:
            turn = CallTime(step + 1, self._index)
            self._write_call(writer, placement, turn, len(behind), head)
        self._write_start(writer, step)

    def release(self, after: StepRecord | None = None, taken: float = math.nan) -> None:
        """Write the step that was held back.

        A guard of the script's own, ``jnp.where(finite, new, old)``, stands behind the optimizer,
        and shows by the next step alone.

        Args:
            after: as `UndecidedStep.resolved` has it.
            taken: likewise.
        """
        undecided, self._undecided = self._undecided, None
        writer = self._book.session.writer()
        if undecided is not None and writer is not None and self._ids is not None:
            record = undecided.resolved(after, taken)
            writer.hand_over(StepItem(record, record.time, self._ids, *undecided.figures))

    def _write_call(
        self, writer: RunWriter, placement: Placement, turn: CallTime, calls: int, head: Head
    ) -> None:
        """One clip call of the script; the norm before it is known where it is the first."""
        limit = placement.max_norm
        if limit != limit and placement.depth == calls - 1 == 0 and head["threshold"] < math.inf:
            limit = head["threshold"]  # known to the device alone
        norm_known = placement.depth == 0 and placement.tensors == placement.of_tensors
        alone = norm_known and calls == 1 and not placement.without_effect
        figures = {
            "max_norm": limit,
            "norm": head["norm"] if norm_known else math.nan,
            "coef": head["coef"] if alone else math.nan,
        }
        placement.enter(self._book.calls, writer, turn, figures)

    def _write_start(self, writer: RunWriter, step: int) -> None:
        """What the weights were before the first step, where the script told them by `init`."""
        start, self.start = self.start, None
        if start is not None and step == 0 and self._ids is not None:
            norms, deviations = start
            writer.write_sample("weight_norm", 0, self._ids, norms)
            writer.write_sample("weight_std", 0, self._ids, deviations)


def _is_finite(record: StepRecord) -> bool:
    return math.isfinite(record.norm) and not (record.loss_told and not math.isfinite(record.loss))
