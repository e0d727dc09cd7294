"""Recovery of a training whose steps are compiled: judged from the host, once they are over.

What is known before a step (the norm over which it is a spike) is set beforehand, and the compiled
step heeds it: such a step is dropped whole, as one with NaN or inf is. What is seen only after it
cannot be dropped any more: it is let pass as long as the ladder would have skipped it, and then
the training goes back to a snapshot from before.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Generic, Literal, NamedTuple, Protocol, TypeVar

import numpy as np

from steadygrad.errors import UsageError
from steadygrad.recovery.events import (
    LOWER_RATE,
    PERSISTENT,
    SHRINK,
    TRANSIENT,
    UNKNOWN,
    RecoveryEvent,
)
from steadygrad.recovery.judge import OPEN, Act, Ahead, Judge, StepVerdict, given_up
from steadygrad.recovery.ladder import Ladder
from steadygrad.recovery.memory import half_of_memory
from steadygrad.recovery.ring import Ring, SnapshotPace, StoredSnapshot
from steadygrad.recovery.triggers import NONFINITE, WEIGHTS, Reading
from steadygrad.vocabulary import RECOVERY, Nature

if TYPE_CHECKING:
    from numpy.typing import NDArray

NO_FOLDER = (
    "recover: snapshots are written to a folder ({}) with PyTorch alone; leave it out, and save "
    "the model as before"
)
Content = TypeVar("Content")
WriteEvent = Callable[[str, "dict[str, str | int | None]", "int | None"], None]
Again = Callable[[], bool]
"""Computes a dropped step once more, and says whether all of it is finite this time."""


class Training(Protocol[Content]):
    """What a framework's side knows of a training."""

    def capture(self) -> tuple[Content, int]:
        """A copy in host memory of all that a step writes, and its bytes."""

    def holds_only_finite(self, content: Content) -> bool:
        """Whether a copy holds no NaN and no inf."""

    def weights_are_finite(self) -> bool:
        """Whether the weights hold no NaN and no inf now."""

    def put_back(self, content: Content) -> None:
        """Make the training what it was when that was copied."""

    def note_forward(self) -> None:
        """A step was sound: keep what its forward pass has written, such as moving averages."""

    def undo_forward(self) -> None:
        """A step was dropped: put back what was kept last."""


class FinishedStep(NamedTuple):
    """What one finished step shows.

    Attributes:
        step: its number.
        loss: NaN where it was NaN or is not known.
        norm: total norm before clipping.
        dropped: whether nothing of it was applied.
        scaled: whether a loss scaler looks after overflows.
        loss_known: whether somebody told the loss.
    """

    step: int
    loss: float
    norm: float
    dropped: bool
    scaled: bool = False
    loss_known: bool = True


class CompiledRecovery(Generic[Content]):
    """Judges finished steps, and goes back where the ladder says so.

    Args:
        ladder: what may be done.
        training: what is judged.
        write_event: takes what was done, for the run file.
        index: number of the optimizer within the run.

    Raises:
        UsageError: the ladder names a folder, for here snapshots are held in memory alone.

    Attributes:
        acts: what was done so far.
        run: the run file; None without one.
    """

    def __init__(
        self, ladder: Ladder, training: Training[Content], write_event: WriteEvent, index: int = 0
    ) -> None:
        if ladder.folder:
            raise UsageError(NO_FOLDER.format(ladder.folder))
        self.acts: list[RecoveryEvent] = []
        self.run: os.PathLike[str] | None = None
        self._training, self._write_event, self._index = training, write_event, index
        self._judge = Judge(ladder)
        self._ring: Ring[Content] = Ring(ladder.keep, ladder.memory or half_of_memory())
        self._pace = SnapshotPace(ladder.stride)
        self._candidate: tuple[int, Content, int] | None = None
        self._restored: StoredSnapshot[Content] | None = None
        self._ahead = OPEN
        self._shrunk_until = -1
        self._nature: Nature | Literal[""] = ""

    @property
    def ladder(self) -> Ladder:
        """What may be done."""
        return self._judge.ladder

    def after_step(self, figures: FinishedStep, again: Again | None = None) -> Ahead:
        """A step is over; call it once a step, in order.

        Args:
            figures: what it shows.
            again: asked where the step was dropped for a NaN or inf; None where nobody can tell.

        Returns:
            What holds for the next one.

        Raises:
            RecoveryError: the ladder has nothing left; the training is what it was before the
                last good step.
            UsageError: the snapshots do not fit the memory budget.
        """
        verdict = self._judge.judge(self._reading(figures))
        self._nature = _nature(verdict.trigger, again if figures.dropped else None)
        if verdict.act in (Act.STOP, Act.ROLLBACK):
            self._go_back(figures.step, verdict)
        elif verdict.act is Act.LEAVE_OUT:
            self._left_out(figures.step)
        elif verdict.act is Act.SKIP:
            self._skipped(figures, verdict.trigger)
        else:
            self._sound(figures, verdict)
        self._look_ahead(figures.step + 1, verdict)
        self._pace.step_ends(time.perf_counter())
        return self._ahead

    def _reading(self, figures: FinishedStep) -> Reading:
        step, loss, norm, _, scaled, loss_known = figures
        finite, loss_finite = math.isfinite(norm), math.isfinite(loss) or not loss_known
        weights = (finite and loss_finite) or self._training.weights_are_finite()
        norm_or_nan = norm if finite else math.nan
        return Reading(step, loss, norm_or_nan, loss_finite, finite or scaled, weights)

    def _sound(self, figures: FinishedStep, verdict: StepVerdict) -> None:
        if verdict.act is Act.ACCEPT:
            self._note(figures.step, verdict.act.value, verdict.trigger)
        elif not figures.dropped and math.isfinite(figures.norm):
            self._vouch(figures.step)
        if figures.dropped:  # by the policy, or by a loss scaler
            self._training.undo_forward()
            return
        self._training.note_forward()
        if figures.norm > self._ahead.cap and figures.step > self._shrunk_until:
            self._shrunk_until = verdict.capped_until
            self._note(figures.step, SHRINK, until=verdict.capped_until)

    def _skipped(self, figures: FinishedStep, trigger: str) -> None:
        if figures.dropped:
            self._note(figures.step, Act.SKIP.value, trigger)
        if not math.isfinite(figures.norm) or figures.dropped:
            self._training.undo_forward()

    def _left_out(self, step: int) -> None:
        self._note(step, Act.LEAVE_OUT.value)
        if self._restored is not None and not self._judge.leave_out:
            self._training.put_back(self._restored.content)

    def _go_back(self, step: int, verdict: StepVerdict) -> None:
        snapshot = self._ring.newest(verdict.until)
        stops = verdict.act is Act.STOP or snapshot is None
        to = None if snapshot is None else snapshot.step
        act = Act.STOP if stops else Act.ROLLBACK
        self._note(step, act.value, verdict.trigger, to)
        if snapshot is not None:
            self._training.put_back(snapshot.content)
            self._ring.drop_after(snapshot.step)
        if stops or snapshot is None:
            raise given_up(step, verdict, to, self.run)
        self._restored = snapshot
        self._judge.rolled_back(step, snapshot.step)
        self._pace.agree(step, self._pace.stride)

    def _vouch(self, step: int) -> None:
        """The step is sound, and so are the weights that it was computed with."""
        if self._candidate is None or self._candidate[0] != step:
            return
        _, content, size = self._candidate
        if self._training.holds_only_finite(content):
            self._ring.require_room(size)
            self._ring.add(step, content, size)

    def _look_ahead(self, step: int, verdict: StepVerdict) -> None:
        """Set what holds for the next step, and copy what it begins with where that is due."""
        before, self._ahead = self._ahead, self._judge.ahead(step)
        if self._ahead.lr_factor < before.lr_factor:
            self._note(step, LOWER_RATE, until=self._ahead.slow_until)
        self._candidate = None
        if verdict.act is Act.NONE and self.ladder.rollback and self._pace.due(step):
            began = time.perf_counter()
            self._candidate = (step, *self._training.capture())
            self._pace.taken(step, time.perf_counter() - began)

    def _note(
        self,
        step: int,
        act: str,
        trigger: str = "",
        to: int | None = None,
        until: int | None = None,
    ) -> None:
        nature = self._nature if trigger else ""
        event = RecoveryEvent(step, act, trigger, to, until, nature, self._index)
        self.acts.append(event)
        self._write_event(RECOVERY, event.as_json(), step)


def _nature(trigger: str, again: Again | None) -> Nature | Literal[""]:
    if trigger not in NONFINITE or again is None:
        return ""
    if trigger == WEIGHTS:
        return PERSISTENT
    try:
        return TRANSIENT if again() else PERSISTENT
    except Exception:  # a replay that fails says nothing, and ends no training
        return UNKNOWN


def rounded_up(limit: float) -> float:
    """A float32 over a limit: what the compiled step drops, the judge calls a spike too.

    Example:
        >>> rounded_up(0.1) > 0.1, rounded_up(-1.0), rounded_up(1e300)
        (True, -1.0, inf)
    """
    if limit <= 0:
        return limit
    with np.errstate(over="ignore"):  # beyond float32 there is no limit
        return float(np.nextafter(np.float32(limit), np.float32(np.inf)))


def is_finite(values: NDArray[np.generic]) -> bool:
    """Whether an array of any kind, bfloat16 too, holds no NaN and no inf.

    Example:
        >>> is_finite(np.arange(3)), is_finite(np.array([0j, complex(0.0, np.inf)]))
        (True, False)
    """
    if values.dtype.kind in "iub":
        return True
    # NumPy's own test does not know the kinds of ml_dtypes
    wide = np.complex128 if values.dtype.kind == "c" else np.float64
    return bool(np.isfinite(values.astype(wide)).all())
