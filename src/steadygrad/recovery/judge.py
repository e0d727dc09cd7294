"""The ladder at work: one verdict a step, from readings alone.

Every rank that is given the same readings reaches the same verdict.
"""

from __future__ import annotations

import enum
import math
import os
from collections.abc import Callable
from typing import NamedTuple

from steadygrad.errors import RecoveryError
from steadygrad.paths import as_typed
from steadygrad.recovery import events
from steadygrad.recovery.beginning import LOOK, Beginning, Gone
from steadygrad.recovery.ladder import Ladder
from steadygrad.recovery.triggers import (
    DIVERGED,
    LASTING,
    NONFINITE,
    TOO_HOT,
    WEIGHTS,
    Fall,
    Reading,
    StepWatch,
)

SETTLE = 200
"""Steps after a rollback within which another one goes further back, and slower."""
SAME_WEIGHTS = 4
"""Spikes on freshly restored weights after which they are taken for the data's new level."""
PATIENCE = 16
"""Struck steps in a row that are dropped where the weights have moved no more than usual."""
REGRETS, DENIALS = 4, 8
"""Batches in a row on which earlier weights do better; and in all on which they do not."""
FOR_GOOD = 2**53
"""Last step of what does not end."""
MOST_SKIPS = 100
"""Steps in a row that a ladder without a rollback drops before it gives up."""


class Act(str, enum.Enum):
    """What is done with one step."""

    NONE = "none"
    SKIP = events.SKIP
    LEAVE_OUT = events.LEAVE_OUT
    ROLLBACK = events.ROLLBACK
    ACCEPT = events.ACCEPT
    STOP = events.STOP


class StepVerdict(NamedTuple):
    """What to do with one step.

    Attributes:
        act: what is done.
        trigger: what struck; empty for nothing.
        cap: largest norm that may be applied; inf for any.
        lr_factor: what the learning rate is multiplied by for this step.
        capped_until: the last step of the cap.
        slow_until: the last step of the lower rate; `FOR_GOOD` where it stays.
        until: a rollback goes to a snapshot of this step or an earlier one.
        reason: why a training is ended; empty otherwise.
    """

    act: Act
    trigger: str = ""
    cap: float = math.inf
    lr_factor: float = 1.0
    capped_until: int = -1
    slow_until: int = -1
    until: int = 0
    reason: str = ""

    @property
    def drops(self) -> bool:
        """Whether nothing of this step may remain."""
        return self.act not in (Act.NONE, Act.ACCEPT)


SOUND = StepVerdict(Act.NONE)


def given_up(
    step: int, verdict: StepVerdict, to: int | None, run: os.PathLike[str] | None
) -> RecoveryError:
    """The error that ends a training.

    Args:
        step: the one that was struck.
        verdict: says by what, and why nothing is left to do.
        to: the last good step, whose weights are back in place; None for none.
        run: the run file; None for none.
    """
    last = "there is no good snapshot" if to is None else f"the last good step is {to}"
    back = "" if to is None else ", whose weights are back in place"
    reason = verdict.reason or "nothing can be gone back to"
    look = f"look for what struck with: steadygrad diagnose {as_typed(run)}"
    if run is None:
        look = 'record the training with run="run.db", and type: steadygrad diagnose run.db'
    return RecoveryError(
        f"step {step}: {verdict.trigger}: {reason}; {last}{back}. Lower the learning rate, "
        f"clip harder, or {look}"
    )


Displaced = Callable[[], bool | None]
Regrets = Callable[[int, Fall], bool | None]


def _unknown() -> None:
    return None


def _unasked(until: int, fall: Fall) -> None:
    return None


def _unmeasured() -> None:
    return None


class Ahead(NamedTuple):
    """What will hold for a step that has not begun, for trainings whose steps are compiled.

    Attributes:
        loss_limit: loss over which the step is to be dropped.
        norm_limit: norm over which it is to be dropped; below 0 for any.
        cap: largest norm that may be applied.
        lr_factor: what the learning rate is multiplied by.
        slow_until: the last step of the lower rate.
    """

    loss_limit: float = math.inf
    norm_limit: float = math.inf
    cap: float = math.inf
    lr_factor: float = 1.0
    slow_until: int = -1


OPEN = Ahead()


class Judge:
    """Decides step by step, as a `Ladder` says.

    Args:
        ladder: what may be done.

    Attributes:
        rollbacks: how many there were.
        leave_out: steps still to be left out.

    Example:
        >>> judge = Judge(Ladder(skip=1, rollback=1))
        >>> [judge.judge(Reading(n, 1.0, math.inf, True, False)).act.value for n in (0, 1)]
        ['skip', 'rollback']
    """

    def __init__(self, ladder: Ladder) -> None:
        self.ladder = ladder
        self.rollbacks = 0
        self.leave_out = 0
        self._watch = StepWatch(ladder)
        self._in_a_row: list[Reading] = []
        self._restored: int | None = None
        self._restored_at = -math.inf
        self._pristine = False
        self._shrink_until = -1
        self._slow_until = -1
        self._lowered = 0
        self._too_hot = 0
        self._regretted = self._denied = 0
        self._beginning = Beginning()

    @property
    def suspects(self) -> bool:
        """Whether the weights of now may be worse than those of before."""
        may_begin_anew = self.ladder.lower_lr < 1.0 and self._beginning.doubtful
        return self._watch.fall() is not None or may_begin_anew

    @property
    def too_far(self) -> float:
        """How many times too far a rate that is too hot from the start took the weights."""
        return self._beginning.too_far

    def judge(
        self,
        reading: Reading,
        displaced: Displaced = _unknown,
        regrets: Regrets = _unasked,
        gone: Gone = _unmeasured,
    ) -> StepVerdict:
        """What to do with this step; call it once a step, in order.

        Args:
            reading: what the step shows.
            displaced: tells whether the weights have moved further than usual since the last
                snapshot, or None where that is not known; asked where it decides.
            regrets: tells whether the weights of a step or before would have done markedly better
                on this very batch, or None where that cannot be told; asked where a loss has
                lasted far over an earlier one.
            gone: tells how many times their own size the weights have gone since the oldest
                snapshot, or None where that is not known; asked once, where the first steps have
                gained little.
        """
        if self.leave_out > 0:
            self.leave_out -= 1
            return StepVerdict(Act.LEAVE_OUT)
        trigger = self._watch.trigger(reading)
        if trigger in ("", DIVERGED):
            regretted = self._is_regretted(reading.step, regrets)
            trigger = trigger if regretted is None else DIVERGED if regretted else ""
        if not trigger and self._is_too_hot(reading, gone):
            trigger = TOO_HOT
        if not trigger:
            return self._sound(reading)
        self._in_a_row.append(reading)
        verdict = self._struck(reading, trigger, displaced)
        if verdict.act is not Act.ROLLBACK:
            return verdict
        if self.rollbacks >= self.ladder.rollback:
            times = f"{self.rollbacks} rollbacks" if self.rollbacks else "no rollback"
            return verdict._replace(act=Act.STOP, reason=f"the budget of {times} is spent")
        return verdict

    def ahead(self, step: int) -> Ahead:
        """What will hold for a step, as far as it is known before it."""
        if self.leave_out > 0:
            return OPEN._replace(norm_limit=-1.0)
        return Ahead(
            *self._watch.limits(step),
            self._watch.usual_norm if step <= self._shrink_until else math.inf,
            self._lr_factor(step),
            self._slow_until if step <= self._slow_until else -1,
        )

    def slow_down(self, step: int, too_far: float) -> None:
        """From a step on, lower the learning rate.

        Args:
            step: the first of a lower rate.
            too_far: how many times too large its own is; nothing is done up to 1.
        """
        if too_far <= 1.0 or self.ladder.lower_lr == 1.0:
            return
        self._lowered += math.ceil(math.log(too_far) / -math.log(self.ladder.lower_lr))
        if self._beginning.tries:
            self._slow_until = step + LOOK
            return
        # a rate that is too hot again once it is let up needs longer each time
        until = step + self.ladder.lr_steps * 2**self._too_hot
        self._slow_until = max(self._slow_until, until)
        self._too_hot += 1

    def rolled_back(self, now: int, to: int) -> None:
        """The training is back at a snapshot, from the step `now`."""
        again = now - self._restored_at <= SETTLE
        self._lowered = self._lowered + again if again or self._slow_until == FOR_GOOD else 0
        if again and self.ladder.lower_lr < 1.0:
            self._slow_until = max(self._slow_until, now + self.ladder.lr_steps)
        self.rollbacks += 1
        self._restored, self._restored_at = to, now
        self._pristine = True
        self._in_a_row.clear()
        self._watch.undone()
        self._regretted = self._denied = 0
        self.leave_out = self.ladder.leave_out

    def _sound(self, reading: Reading) -> StepVerdict:
        if len(self._in_a_row) == 1:
            self._watch.was_lone(self._in_a_row[0])
        self._in_a_row.clear()
        self._pristine = False
        self._watch.accept(reading)
        if self._beginning.tries and self._beginning.pays(reading.loss):
            self._slow_until = FOR_GOOD
        slow = reading.step <= self._slow_until
        shrinks = reading.step <= self._shrink_until
        if not (slow or shrinks):
            return SOUND
        return StepVerdict(
            Act.NONE,
            cap=self._watch.usual_norm if shrinks else math.inf,
            lr_factor=self._lr_factor(reading.step),
            capped_until=self._shrink_until if shrinks else -1,
            slow_until=self._slow_until if slow else -1,
        )

    def _lr_factor(self, step: int) -> float:
        return self.ladder.lower_lr**self._lowered if step <= self._slow_until else 1.0

    def _is_too_hot(self, reading: Reading, gone: Gone) -> bool:
        """Whether the training is to begin anew, at a lower rate."""
        ladder = self.ladder
        if not ladder.rollback or ladder.lower_lr == 1.0:
            return False
        if not self._beginning.is_too_hot(reading.loss, gone):
            return False
        self._watch.forget()  # what later steps are compared with is to be of the lower rate
        return True

    def _is_regretted(self, step: int, regrets: Regrets) -> bool | None:
        """Whether the weights are to blame for a loss that has fallen back.

        The data may have become harder, a reward larger, a schedule hotter as it was meant to: on
        the same batch, earlier weights then do no better. None where nobody can tell.
        """
        fall = self._watch.fall() if self.ladder.rollback else None
        if fall is None:
            self._regretted = self._denied = 0
            return None
        better = regrets(self._further_back(step, self._divergence), fall)
        if better:
            self._regretted += 1
        else:
            self._regretted = 0
            self._denied += 1
        if self._denied >= DENIALS:
            self._watch.settle()
            self._denied = 0
        return None if better is None else self._regretted >= REGRETS

    def _struck(self, reading: Reading, trigger: str, displaced: Displaced) -> StepVerdict:
        times = len(self._in_a_row)
        self._shrink_until = reading.step + self.ladder.shrink
        if not self.ladder.rollback:
            return self._struck_for_good(trigger, times)
        if trigger == WEIGHTS:
            return StepVerdict(Act.ROLLBACK, trigger, until=reading.step - self.ladder.back)
        if trigger == TOO_HOT:
            return StepVerdict(Act.ROLLBACK, trigger, until=-1)
        if trigger == DIVERGED:
            return self._back(reading.step, self._divergence, trigger)
        moved = displaced() if self.ladder.skip else None
        if moved:  # since the snapshot, which is sound therefore
            return StepVerdict(Act.ROLLBACK, trigger, until=reading.step - self.ladder.back)
        if self._pristine:
            return self._struck_on_restored(trigger, times)
        if times <= (self.ladder.skip if moved is None else max(self.ladder.skip, PATIENCE)):
            return StepVerdict(Act.SKIP, trigger)
        return self._back(reading.step, self.ladder.back, trigger)

    def _struck_for_good(self, trigger: str, times: int) -> StepVerdict:
        """A ladder without a rollback can but drop the step."""
        if times <= MOST_SKIPS:
            return StepVerdict(Act.SKIP, trigger)
        if trigger in NONFINITE:
            return StepVerdict(Act.STOP, trigger, reason=f"{times} steps in a row are struck")
        return self._accepted(trigger)

    def _struck_on_restored(self, trigger: str, times: int) -> StepVerdict:
        """The weights are those of a good snapshot, so what strikes is in the data."""
        if trigger in NONFINITE and times > MOST_SKIPS:
            return StepVerdict(Act.STOP, trigger, reason="the last good weights are struck as well")
        if trigger not in NONFINITE and times > SAME_WEIGHTS:
            return self._accepted(trigger)
        return StepVerdict(Act.SKIP, trigger)

    def _accepted(self, trigger: str) -> StepVerdict:
        self._watch.forget()
        self._in_a_row.clear()
        self._pristine = False
        return StepVerdict(Act.ACCEPT, trigger)

    def _back(self, step: int, steps: int, trigger: str) -> StepVerdict:
        return StepVerdict(Act.ROLLBACK, trigger, until=self._further_back(step, steps))

    def _further_back(self, step: int, steps: int) -> int:
        """The step so many before; soon after a rollback, one before what that went back to."""
        latest = step - steps
        if self._restored is not None and step - self._restored_at <= SETTLE:
            latest = min(latest, self._restored - 1)
        return latest

    @property
    def _divergence(self) -> int:
        """Steps that a divergence goes back at least."""
        return max(self.ladder.back, 2 * LASTING)
