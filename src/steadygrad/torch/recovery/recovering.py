"""Recovery of one optimizer's training: readings in, verdicts and snapshots out.

A step is judged when its gradients are measured, before its weights are written: what struck it
was computed with the weights as they are. A step that is found sound vouches for them, so that is
when a snapshot is taken. A rollback waits until the step is over.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import torch

from steadygrad.recovery.events import (
    LOWER_RATE,
    PERSISTENT,
    RESTORE,
    SHRINK,
    TRANSIENT,
    RecoveryEvent,
)
from steadygrad.recovery.judge import FOR_GOOD, SOUND, Act, Judge, StepVerdict, given_up
from steadygrad.recovery.ladder import Ladder
from steadygrad.recovery.ring import StoredSnapshot
from steadygrad.recovery.triggers import (
    DIVERGED,
    LASTING,
    NONFINITE,
    TOO_HOT,
    WEIGHTS,
    Fall,
    Reading,
)
from steadygrad.torch.distributed.board import is_job
from steadygrad.torch.gradients.batch import GradientBatch
from steadygrad.torch.gradients.outcome import StepOutcome
from steadygrad.torch.gradients.parameters import parameters_of
from steadygrad.torch.gradients.pieces import local, scale_each_once
from steadygrad.torch.recovery.again import StepAgain
from steadygrad.torch.recovery.agreement import agreed, common_nature, largest, smallest
from steadygrad.torch.recovery.buffers import all_finite
from steadygrad.torch.recovery.displacement import FACTOR, Displacement, times_its_size
from steadygrad.torch.recovery.snapshots import Snapshots
from steadygrad.torch.recovery.training_state import TrainingState
from steadygrad.vocabulary import LADDER, RECOVERY, Nature

WriteEvent = Callable[[str, dict[str, Any], int | None], None]


class Recovering:
    """Judges the steps of one optimizer, and takes back those that went wrong.

    Args:
        ladder: what may be done.
        optimizer: whose steps.
        snapshots: what it may go back to.
        write_event: takes what was done, for the run file.
        index: number of the optimizer within the run.

    Attributes:
        snapshots: as given.
        again: runs a step once more.
        acts: what was done so far.
        run: the run file; None without one.
    """

    def __init__(
        self,
        ladder: Ladder,
        optimizer: torch.optim.Optimizer,
        snapshots: Snapshots,
        write_event: WriteEvent,
        index: int,
    ) -> None:
        self.acts: list[RecoveryEvent] = []
        self.run: os.PathLike[str] | None = None
        self.snapshots = snapshots
        self.again = StepAgain(optimizer)
        self._judge = Judge(ladder)
        self._write_event, self._index = write_event, index
        whole = self.snapshots.disk.whole
        write_event(
            LADDER,
            {"ladder": ladder.spec(), "folder": str(whole or ""), "optimizer": index},
            None,
        )
        self._doubts = 0
        self._rollback: StoredSnapshot[TrainingState] | None = None
        self._too_far = 1.0
        self._hot: tuple[float, list[float]] | None = None
        self._verdict = SOUND
        self._under_way: dict[str, int] = {}

    # -- one step ----------------------------------------------------------------------------

    def judge(
        self,
        optimizer: torch.optim.Optimizer,
        step: int,
        loss: Any,
        norm: Any,
        scaled: bool,
        dropped: bool,
    ) -> StepVerdict:
        """What to do with the step whose gradients have been measured.

        Args:
            optimizer: whose step.
            step: its number.
            loss: its loss, a number or a tensor; None where nobody knows it.
            norm: total norm before clipping.
            scaled: whether a GradScaler looks after overflows.
            dropped: whether the clip policy drops the step by itself.

        Raises:
            RecoveryError: the ladder has nothing left; weights are those of the last good step.
        """
        self._cool(optimizer, step)
        reading = self._reading(optimizer, step, loss, float(norm), scaled)
        verdict = self._verdict = self._judge.judge(
            reading,
            lambda: self._displaced(optimizer, step),
            lambda until, fall: self._regrets(optimizer, reading, until, fall),
            lambda: self._gone(optimizer),
        )
        nature = self._nature(optimizer, verdict)
        if verdict.act is Act.STOP or verdict.act is Act.ROLLBACK:
            self._go_back(optimizer, step, verdict, nature)
        elif verdict.trigger or verdict.act is Act.LEAVE_OUT:
            self._note(self._event(step, verdict.act, verdict.trigger, nature=nature))
            if verdict.drops and nature != TRANSIENT:
                batch = self.snapshots.left_out.current(step)
                self.snapshots.left_out.add(batch, batch)
        elif not dropped and math.isfinite(reading.norm):
            self._vouch(optimizer, step)
            self._once(LOWER_RATE, step, verdict.slow_until)
        self.snapshots.step_judged()
        return verdict

    def shrunk(
        self, step: int, verdict: StepVerdict, outcome: StepOutcome, batch: GradientBatch
    ) -> StepOutcome:
        """Hold a step's gradients to a verdict's cap, beyond what the policy did to them.

        Args:
            step: its number.
            verdict: on this step.
            outcome: what the policy did.
            batch: the gradients.

        Returns:
            The outcome of both.
        """
        applied, norm = outcome.applied, float(outcome.stats.total_norm)
        coef = float(applied.coef) if np.ndim(applied.coef) == 0 else 1.0
        if norm * coef <= verdict.cap:
            return outcome
        self._once(SHRINK, step, verdict.capped_until)
        by = verdict.cap / (norm * coef)
        scale_each_once(local(batch.grads), by)
        return outcome._replace(applied=applied._replace(coef=coef * by, clipped=True))

    def step_ends(self, optimizer: torch.optim.Optimizer, step: int) -> None:
        """The step of this number is over, and nothing of it is under way."""
        verdict, self._verdict = self._verdict, SOUND
        if verdict.drops:
            self.snapshots.buffers.put_back()
        else:
            self.snapshots.buffers.note()
        rollback, self._rollback = self._rollback, None
        if rollback is not None:
            self.snapshots.put_back(optimizer, rollback.content)
            self._rolled_back(step, rollback)
        self.snapshots.step_ends(step)

    def close(self) -> None:
        """Wait for what is being written; look at no further step."""
        self.again.end()
        self.snapshots.close()

    def restore(self, optimizer: torch.optim.Optimizer, folder: str | None) -> int:
        """Put back the newest snapshot in a folder that is whole, after a restart.

        Args:
            optimizer: made as it was when that was written.
            folder: where it is; None for the ladder's own.

        Returns:
            The step to go on with; 0 where there is no snapshot.

        Raises:
            UsageError: no folder is known, or what was saved is of other weights.
        """
        step = self.snapshots.restore_newest(optimizer, folder)
        if step is None:
            return 0
        self._note(RecoveryEvent(step, RESTORE, to_step=step, optimizer=self._index))
        return step

    # -- what the above are made of ----------------------------------------------------------

    def _reading(
        self, optimizer: torch.optim.Optimizer, step: int, loss: object, norm: float, scaled: bool
    ) -> Reading:
        value = _number(loss)
        finite = math.isfinite(norm)
        loss_finite = value is None or math.isfinite(value)
        weights = True
        if not (finite and loss_finite):
            weights = all_finite(parameters_of(optimizer))
        reading = Reading(
            step,
            math.nan if value is None else value,
            norm if finite else math.nan,
            loss_finite,
            finite or scaled,
            weights,
            not self.snapshots.buffers.jumped(),
        )
        return agreed(reading, parameters_of(optimizer)[0].device) if is_job() else reading

    def _vouch(self, optimizer: torch.optim.Optimizer, step: int) -> None:
        """The step is sound, and so are the weights that it was computed with."""
        if not self.snapshots.is_due(step) or self._judge.suspects:
            return
        if not self._is_doubtful(optimizer, step):
            self.snapshots.take(optimizer, step)

    def _is_doubtful(self, optimizer: torch.optim.Optimizer, step: int) -> bool:
        """Weights that have just jumped are good only once more steps have been sound."""
        doubtful = self._doubts < 2 * LASTING and self._displaced(optimizer, step) is True
        self._doubts = self._doubts + 1 if doubtful else 0
        return doubtful

    def _displaced(self, optimizer: torch.optim.Optimizer, step: int) -> bool | None:
        """Whether weights have moved further than usual since the last snapshot, on any rank."""
        last = self.snapshots.newest(step)
        if last is None:
            return None
        params, weights = parameters_of(optimizer), last.content.weights
        unusual = self.snapshots.displacement.is_unusual(weights, params, step - last.step)
        if is_job():
            code = largest(-1 if unusual is None else int(unusual), params[0].device)
            return None if code < 0 else bool(code)
        return unusual

    def _gone(self, optimizer: torch.optim.Optimizer) -> float | None:
        """How many times their own size weights have gone since the oldest snapshot."""
        first, params = self.snapshots.newest(-1), parameters_of(optimizer)
        times = None if first is None else times_its_size(first.content.weights, params)
        if not is_job():
            return times
        hundredths = largest(-1 if times is None else int(min(100 * times, 1e9)), params[0].device)
        return None if hundredths < 0 else hundredths / 100

    def _regrets(
        self, optimizer: torch.optim.Optimizer, reading: Reading, until: int, fall: Fall
    ) -> bool | None:
        """Whether a snapshot's weights would have done better on this very batch, on all ranks."""
        last = self.snapshots.newest(until)
        if last is None:
            return None
        weights, params = last.content.weights, parameters_of(optimizer)
        far = self.snapshots.displacement.ratio(weights, params, reading.step - last.step)
        losses = self.again.losses(weights)
        answer = -1  # not to be told
        if losses is not None:
            now, then = losses
            unit = now / reading.loss if reading.loss else 1.0  # a loss scale, or parts of a loss
            gain = (now - then) / unit if unit > 0 else math.nan
            answer = gain >= fall.lost / 2 and (fall.over_start or (far or 0.0) > FACTOR)
        if is_job():
            answer = smallest(int(answer), params[0].device)
        if answer > 0:
            self._too_far = max(far or 1.0, 2.0)
        return None if answer < 0 else bool(answer)

    def _nature(
        self, optimizer: torch.optim.Optimizer, verdict: StepVerdict
    ) -> Nature | Literal[""]:
        """Whether a NaN comes back when the step is run again; empty where there is none."""
        if verdict.trigger not in NONFINITE:
            return ""
        nature = PERSISTENT if verdict.trigger == WEIGHTS else self.again.nature()
        return common_nature(nature, parameters_of(optimizer)[0].device) if is_job() else nature

    def _go_back(
        self, optimizer: torch.optim.Optimizer, step: int, verdict: StepVerdict, nature: str
    ) -> None:
        snapshot = self.snapshots.newest(verdict.until)
        stops = verdict.act is Act.STOP or snapshot is None
        to = None if snapshot is None else snapshot.step
        act = Act.STOP if stops else Act.ROLLBACK
        self._note(self._event(step, act, verdict.trigger, to, nature))
        if not stops and snapshot is not None:
            self._rollback = snapshot
            if verdict.trigger == DIVERGED:
                self._hot = self._too_far, _rates(optimizer)
            if verdict.trigger == TOO_HOT:
                self._hot = self._judge.too_far, _rates(optimizer)
                self.snapshots.displacement = Displacement()
            return
        if snapshot is not None:
            self.snapshots.put_back(optimizer, snapshot.content)
        raise given_up(step, verdict, to, self.run)

    def _cool(self, optimizer: torch.optim.Optimizer, step: int) -> None:
        """Lower a rate that led astray, unless going back has put back the one before it."""
        if self._hot is None:
            return
        (too_far, hot), self._hot = self._hot, None
        now = _rates(optimizer)
        share = max((a / b for a, b in zip(now, hot, strict=True) if b), default=1.0)
        self._judge.slow_down(step, too_far * share)

    def _rolled_back(self, step: int, snapshot: StoredSnapshot[TrainingState]) -> None:
        self.snapshots.rolled_back(step, snapshot.step)
        self._judge.rolled_back(step, snapshot.step)
        left_out = self.snapshots.left_out
        first = snapshot.content.batch if left_out.heeded else snapshot.step
        left_out.add(max(first, 0), left_out.current(step))
        if left_out.heeded:
            left_out.pending, self._judge.leave_out = self._judge.leave_out, 0

    def _once(self, act: str, step: int, until: int) -> None:
        """Write an event where its cause begins, and not again while that goes on."""
        if step > self._under_way.get(act, -1) and until >= step:
            last = None if until == FOR_GOOD else until
            self._note(RecoveryEvent(step, act, until=last, optimizer=self._index))
            self._under_way[act] = until

    def _event(
        self, step: int, act: Act, trigger: str, to_step: int | None = None, nature: str = ""
    ) -> RecoveryEvent:
        return RecoveryEvent(step, act.value, trigger, to_step, None, nature, self._index)

    def _note(self, act: RecoveryEvent) -> None:
        self.acts.append(act)
        self._write_event(RECOVERY, dict(act.as_json()), act.step)


def _rates(optimizer: torch.optim.Optimizer) -> list[float]:
    return [float(group.get("lr", 1.0)) for group in optimizer.param_groups]


def _number(loss: Any) -> float | None:
    """A loss; None where it is not known, or is no single number."""
    try:
        return None if loss is None else float(loss)
    except (TypeError, ValueError, RuntimeError):
        return None
