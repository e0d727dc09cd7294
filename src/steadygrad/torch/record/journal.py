"""The steps of one optimizer on their way to the run file, and the last one's record.

On the host a step's record is made at once. Figures on a device stay there: the record then begins
with what the host knows, and `steadygrad.torch.record.outbox` adds the rest when it has arrived.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Sequence
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray

from steadygrad.kernels.native import Empty, Same, Stamped
from steadygrad.runlog.items import SealedStep, StepItem
from steadygrad.runlog.records import StepRecord, TensorInfo
from steadygrad.runlog.run import Floats
from steadygrad.runlog.writer import RunWriter
from steadygrad.stats import GradientStats
from steadygrad.torch.distributed.board import is_first_rank
from steadygrad.torch.distributed.exchange import Tell, warn_of_replicas
from steadygrad.torch.gradients.outcome import StepOutcome
from steadygrad.torch.internals.private import NO_GROUP, process_group
from steadygrad.torch.record.outbox import Outbox
from steadygrad.torch.record.ranks import RankLog, rank_log
from steadygrad.torch.record.recording import OptimizerRecorder, facts_of
from steadygrad.vocabulary import Action, OnNonfinite


class Journal(Stamped):
    """Takes finished steps of one optimizer; without a run file it keeps the last one's record.

    Args:
        optimizer: whose steps.
        policy: spec of the clipping policy, a fact about a new run.
        on_nonfinite: what is done with NaN and inf, likewise.
        run: a path for a new run file, which the first rank of a job writes; an open `RunWriter`;
            or None.
        index: number of the optimizer within the run.

    Attributes:
        announced: the parameters as the run file knows them; None before the first step.
        latest: the last step, as it was handed over.
        recorder: the optimizer's place in the run file; None without one.
        tell: given a sentence where ranks clip by different norms.
        stop_if_asked: called between two steps, raises `TrainingStopped` where an alert asked
            for that.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        policy: str,
        on_nonfinite: OnNonfinite,
        run: Any,
        index: int,
    ) -> None:
        if isinstance(run, (str, os.PathLike)) and not is_first_rank():
            run = None  # one file a job: every rank is given the same path
        facts = {} if run is None else facts_of(optimizer, policy, on_nonfinite, index)
        self.announced: tuple[TensorInfo, ...] | None = None
        self.recorder = None if run is None else OptimizerRecorder(run, facts)
        self._outbox = Outbox()
        self.latest: StepRecord | SealedStep | None = None
        self._index = index
        self._seconds = 0.0
        self._ranks: RankLog | None = None
        self.tell: Tell = warn_of_replicas
        writer = self.writer
        self.stop_if_asked: Callable[[], None] = _go_on if writer is None else writer.stop_if_asked

    @property
    def last(self) -> StepRecord | None:
        """The last step's record; waits for figures on a device. None before the first step."""
        self._empty()
        if isinstance(self.latest, SealedStep):
            self.latest = self.latest.opened().record
        return self.latest

    @property
    def takes_sealed(self) -> bool:
        """Whether a step's record may be made later: written here, and shared with no rank."""
        alone = process_group() is None
        return alone and self.recorder is not None and not self._outbox.under_way

    @property
    def sealing(self) -> tuple[Same, Empty]:
        """What stays so as long as `takes_sealed` says so: attributes, and what is empty."""
        return NO_GROUP, ((self._outbox, "under_way"),)

    @property
    def stopping(self) -> Empty:
        """Where nothing is as long as nobody asks for the training's end."""
        return () if self.recorder is None else self.recorder.writer.stopping

    @property
    def ends_by_itself(self) -> Callable[[], None]:
        """A function that delivers the last steps at exit, where nobody has called `close`."""
        owned = self.recorder is not None and self.recorder.owned
        return self._release if owned else self._empty

    @property
    def writer(self) -> RunWriter | None:
        """The run file's writer; None without one."""
        return None if self.recorder is None else self.recorder.writer

    def flush(self) -> None:
        """Wait until every finished step can be read back from the run file."""
        self._empty()
        if self.recorder is not None:
            self.recorder.writer.flush()

    def announce(self, infos: tuple[TensorInfo, ...]) -> None:
        """Name the parameters; again when they change."""
        if self.announced is not infos and self.recorder is not None:
            self._empty()  # its steps are of the tensors announced before
            self.recorder.add_tensors(infos)
        self.announced = infos

    def sample(self, step: int, params: Sequence[torch.Tensor]) -> None:
        """Sample weights and activations, where due, before the step moves the weights."""
        recorder = self.recorder
        if recorder is not None and step >= recorder.sampler.idle_before:
            recorder.sample(step, params)

    def sample_weights(self, step: int, params: Sequence[torch.Tensor]) -> None:
        """The first half of `sample`: for a step whose forward pass is still to come."""
        if self.recorder is not None:
            self.recorder.sample_weights(step, params)

    def sample_activations(self, step: int, params: Sequence[torch.Tensor]) -> None:
        """The second half: that forward pass is over."""
        if self.recorder is not None:
            self.recorder.sample_activations(step, params)

    def file(
        self,
        step: int,
        outcome: StepOutcome,
        loss: Any,
        lr: Any,
        loss_scale: torch.Tensor | None,
        present: list[int] | None,
    ) -> None:
        """Take a finished step.

        Args:
            step: its number.
            outcome: its figures, and what was done.
            loss: its loss, a number or a tensor; what is neither gives NaN.
            lr: the learning rate, likewise.
            loss_scale: the factor that its gradients carried; None for none.
            present: places of the parameters with a gradient; None for all.
        """
        norm = outcome.stats.total_norm
        if self.takes_sealed and isinstance(norm, float):
            assert self.recorder is not None
            ids = self.recorder.ids if present is None else self.recorder.ids[present]
            scale = None if loss_scale is None else number(loss_scale)
            self.seal(DecidedStep, step, ids, norm, loss, lr, outcome, scale)
            return
        facts = (step, outcome, loss, lr, loss_scale, self._index)
        if isinstance(norm, torch.Tensor):
            self._outbox.send(*begun_record(*facts), outcome.stats, present)
            self._empty(wait=False)
            return
        if self._outbox.under_way:
            self._empty()
        self._deliver(record_of(*facts), outcome.stats, present)

    def seal(
        self,
        kind: type[SealedStep],
        step: int,
        tensor_ids: NDArray[np.int64],
        norm: float,
        loss: Any,
        lr: Any,
        *figures: object,
    ) -> None:
        """Hand over a finished step of which the thread makes the record.

        Args:
            kind: what makes it then.
            step: its number.
            tensor_ids: of its tensors in the run file.
            norm: total norm of its gradients.
            loss: as `file` has it.
            lr: as `file` has it.
            figures: what that kind needs beside these.
        """
        assert self.recorder is not None
        facts = (step, self._index, tensor_ids, norm, loss, lr)
        self.latest = seal(self.recorder, kind, *facts, *figures)

    def write_event(self, kind: str, data: dict[str, object], step: int | None) -> None:
        """Write something that happened once; of a job, rank 0 writes it for all."""
        if self.recorder is not None:
            self.recorder.writer.write_event(kind, data, step)
        elif (ranks := self._open_ranks()) is not None:
            ranks.post(kind, data, step)

    def spent(self, seconds: float) -> None:
        """Tell the run file how much time was spent on this optimizer, all in all."""
        if self.recorder is not None:
            self.recorder.writer.overhead_seconds += seconds - self._seconds
            self._seconds = seconds

    def _release(self) -> None:
        self.close(patience=0.0)  # wherever the optimizer was collected: no place to wait

    def close(self, patience: float | None = None) -> None:
        """Deliver what is under way, and end.

        Args:
            patience: as `RankLog.finish` has it.
        """
        self._empty()
        if self._ranks is not None:
            self._ranks.finish(patience)
        if self.recorder is not None:
            self.recorder.close()

    def _empty(self, wait: bool = True) -> None:
        for delivery in self._outbox.take(wait):
            self._deliver(*delivery)

    def _deliver(self, record: StepRecord, stats: GradientStats, present: list[int] | None) -> None:
        self.latest = record
        if self.recorder is not None:
            hand_over(self.recorder, record, stats, present)
        ranks = self._open_ranks()
        if ranks is not None:
            ranks.share(record, stats)

    def _open_ranks(self) -> RankLog | None:
        """Where the other ranks are told; None in a process that trains alone."""
        if self._ranks is None:
            recorder = self.recorder
            write = None if recorder is None else recorder.writer.write_event
            self._ranks = rank_log(self._index, write)
            if self._ranks is not None:
                self._ranks.tell = self.tell
        return self._ranks


def _go_on() -> None:
    return None


def seal(
    recorder: OptimizerRecorder,
    kind: type[SealedStep],
    step: int,
    optimizer: int,
    tensor_ids: NDArray[np.int64],
    norm: float,
    loss: Any,
    lr: Any,
    *figures: object,
) -> SealedStep:
    """Queue one step of which the thread that writes makes the record.

    Args:
        recorder: knows the file.
        kind: what makes the record then.
        step: its number.
        optimizer: number of the optimizer within the run.
        tensor_ids: of its tensors in the run file.
        norm: total norm of its gradients.
        loss: its loss, a number or a tensor; None where nobody told it.
        lr: the learning rate, likewise.
        figures: what that kind needs beside these.

    Returns:
        The step.
    """
    has_loss = loss is not None
    loss = loss if type(loss) is float else number(loss)
    lr = lr if type(lr) is float else number(lr)
    sealed = kind((step, time.time(), loss, has_loss, lr, optimizer, tensor_ids, *figures))
    writer = recorder.writer
    # a loss that is NaN is an event of its own
    if (has_loss and loss != loss) or not writer.hand_over_sealed(sealed, recorder.step_bytes):
        writer.hand_over(sealed.opened())
    recorder.sampler.notice(step, norm, loss)
    return sealed


def hand_over(
    recorder: OptimizerRecorder, record: StepRecord, stats: GradientStats, present: list[int] | None
) -> None:
    """Queue one step for the thread that writes the run file.

    Args:
        recorder: knows the file, and the optimizer's tensors there.
        record: the step.
        stats: its figures, NumPy; nobody writes to them any more.
        present: places in the optimizer's order of the tensors measured; None for all.
    """
    ids = recorder.ids if present is None else recorder.ids[present]
    recorder.writer.hand_over(StepItem(record, record.time, ids, *_figures_of(stats)))
    recorder.sampler.notice(record.step, record.norm, record.loss)


def _figures_of(stats: GradientStats) -> tuple[Floats, Floats, Floats, Floats]:
    figures = (stats.norms, stats.max_abs, stats.nonfinite, stats.zeros)
    return cast("tuple[Floats, Floats, Floats, Floats]", figures)


class DecidedStep(SealedStep):
    """A step at which a policy decided, with figures in NumPy.

    Last in it are a `StepOutcome` and the loss scale; None for none.
    """

    __slots__ = ()

    def opened(self) -> StepItem:
        step, when, loss, loss_told, lr, optimizer, tensor_ids, outcome, loss_scale = self
        loss = loss if loss_told else None
        record = record_of(step, outcome, loss, lr, loss_scale, optimizer, when)
        return StepItem(record, when, tensor_ids, *_figures_of(outcome.stats))


def record_of(
    step: int,
    outcome: StepOutcome,
    loss: object,
    lr: object,
    loss_scale: object = None,
    optimizer: int = 0,
    when: float | None = None,
) -> StepRecord:
    """The record of a step whose figures are read here.

    Args:
        step: its number.
        outcome: what was found and done.
        loss: its loss, a number or a tensor; None where nobody told it, which gives NaN.
        lr: the learning rate, likewise.
        loss_scale: the factor that its gradients carried; None for none.
        optimizer: number of the optimizer within the run.
        when: seconds since the Unix epoch; None for now.

    Returns:
        The record, of plain numbers.
    """
    applied, norm = outcome.applied, float(outcome.stats.total_norm)
    return StepRecord(
        step,
        time.time() if when is None else when,
        loss if type(loss) is float else number(loss),
        norm,
        float(outcome.threshold),
        float(applied.coef),
        "skip" if outcome.skip else "clip" if applied.clipped else "none",
        lr if type(lr) is float else number(lr),
        1.0 if loss_scale is None else number(loss_scale),
        0 if math.isfinite(norm) else int(cast("torch.Tensor", outcome.stats.nonfinite).sum()),
        float(applied.cosine),
        optimizer,
        loss is not None,
    )


def begun_record(
    step: int,
    outcome: StepOutcome,
    loss: object,
    lr: object,
    loss_scale: object = None,
    optimizer: int = 0,
) -> tuple[StepRecord, dict[str, torch.Tensor]]:
    """The record of a step whose figures are on a device, and those figures; reads none.

    Args:
        step: its number.
        outcome: what was found and done.
        loss: its loss; on another device, or of several elements, it is read here.
        lr: the learning rate, likewise.
        loss_scale: the factor that its gradients carried, likewise.
        optimizer: number of the optimizer within the run.

    Returns:
        The record without them, and what is missing by its field's name, ``clipped`` and ``skip``.
    """
    home = cast("torch.Tensor", outcome.stats.total_norm).device
    figures = {
        "loss": loss,
        "norm": outcome.stats.total_norm,
        "threshold": outcome.threshold,
        "coef": outcome.applied.coef,
        "cosine": outcome.applied.cosine,
        "clipped": outcome.applied.clipped,
        "skip": outcome.skip,
        "lr": lr,
        "loss_scale": 1.0 if loss_scale is None else loss_scale,
    }
    there = {key: value for key, value in figures.items() if _is_on(value, home)}
    here: dict[str, Any] = {
        key: number(value) for key, value in figures.items() if key not in there
    }
    clipped, skipped = here.pop("clipped", 0.0), here.pop("skip", 0.0)
    action: Action = "skip" if skipped else "clip" if clipped else "none"
    has_loss = loss is not None
    return StepRecord(
        step, time.time(), action=action, optimizer=optimizer, loss_told=has_loss, **here
    ), there


def number(value: Any) -> float:
    """A float of whatever a loss or a learning rate may be; NaN where it is not one number.

    Example:
        >>> number(torch.tensor(0.5)), number(None)
        (0.5, nan)
    """
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError):
        return math.nan


def _is_on(value: object, device: torch.device) -> bool:
    return isinstance(value, torch.Tensor) and value.device == device and value.numel() == 1
