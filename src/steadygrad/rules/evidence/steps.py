"""Steps: one optimizer's steps of a run, with broken and skipped ones told apart.

What is read through them keeps the same things out of every window: steps with a NaN or inf,
steps that were skipped, other optimizers' steps, and those that a rollback took back.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from steadygrad.recovery.events import RESTART, RecoveryEvent, events_of
from steadygrad.recovery.undone import undone
from steadygrad.robust import ENOUGH, spikes
from steadygrad.runlog.info import OptimizerFacts, RunInfo

if TYPE_CHECKING:
    from steadygrad.runlog import Event, Run

Array = npt.NDArray[Any]


class Steps:
    """One optimizer's steps, with broken and skipped ones told apart.

    Args:
        run: the run, as `steadygrad.open_run` gives it.
        optimizer: number of the optimizer.

    Attributes:
        acts: what recovery did with it.
        undone: how many of its steps rollbacks took back, which are not among those seen here.
        before_restart: how many belong to an earlier start of the job, and are not either.
        skipped: which steps were not applied, by us or by the script.
        dropped: which of these the script must have dropped, going by what came after.
    """

    def __init__(self, run: Run, optimizer: int) -> None:
        self.run = run
        self.optimizer = optimizer
        self.acts: list[RecoveryEvent] = [
            act for act in events_of(run.events) if act.optimizer == optimizer
        ]
        part = run.parts.get(optimizer)
        every: Array = np.zeros(0, np.int64) if part is None else part.rows
        gone = self.taken_back(run.steps["step"][every])
        earlier = self._of_earlier_start(run.steps["step"][every])
        self.before_restart = int(earlier.sum())
        self.undone = int((gone & ~earlier).sum())
        self.rows: Array = every[~gone]
        self.several = len(run.parts) > 1
        self.first_optimizer = next(iter(run.parts), 0)
        steps = run.steps[self.rows]
        self.step: Array = np.asarray(steps["step"], dtype=np.int64)
        self.loss: Array = np.asarray(steps["loss"], dtype=np.float64)
        self.norm: Array = np.asarray(steps["norm"], dtype=np.float64)
        self.threshold: Array = np.asarray(steps["threshold"], dtype=np.float64)
        self.coef: Array = np.asarray(steps["coef"], dtype=np.float64)
        self.lr: Array = np.asarray(steps["lr"], dtype=np.float64)
        self.loss_scale: Array = np.asarray(steps["loss_scale"], dtype=np.float64)
        self.cosine: Array = np.asarray(steps["cosine"], dtype=np.float64)
        self.broken: Array = (np.asarray(steps["nonfinite"]) > 0) | ~np.isfinite(self.norm)
        self.skipped: Array = np.asarray(steps["action"] == "skip")
        self.dropped: Array = self._dropped()
        self.skipped |= self.dropped
        self.usable: Array = ~self.broken & ~self.skipped

    def __len__(self) -> int:
        return len(self.rows)

    def taken_back(self, steps: Array) -> Array:
        """Which of these step numbers a rollback or a restart of the job took back."""
        return undone(np.asarray(steps, dtype=np.int64), self.acts)

    def _of_earlier_start(self, steps: Array) -> Array:
        restarts = [act for act in self.acts if act.act == RESTART]
        return undone(np.asarray(steps, dtype=np.int64), restarts)

    @property
    def info(self) -> RunInfo:
        """What the run file says of the run as a whole."""
        return self.run.info

    @cached_property
    def facts(self) -> OptimizerFacts:
        """What the run file says of this optimizer."""
        listed = self.info.get("optimizers") or ()
        nothing: OptimizerFacts = {}
        return next((o for o in listed if o.get("index") == self.optimizer), nothing)

    @property
    def framework(self) -> str:
        """The optimizer's ``torch``, ``keras``, ``tensorflow`` or ``jax``; torch where unknown."""
        return str(self.facts.get("framework") or self.info.get("framework") or "torch")

    def _dropped(self) -> Array:
        """Broken steps of JAX after which the weights were sound.

        Compiled code drops a step by ``jnp.where``, unseen. A NaN that was applied may also hide
        in weights of which few batches make use: then a later step has a loss of NaN.
        """
        unsaid = self.broken & ~self.skipped
        if not unsaid.any() or self.framework != "jax":
            return np.zeros(len(self), dtype=bool)
        sound = ~self.broken
        has_losses = np.isfinite(self.loss[sound]).any()
        poisoned = self.broken & (np.isnan(self.loss) if has_losses else True) & (not self.amp)
        return unsaid & _comes_later(sound) & ~_comes_later(poisoned)

    @cached_property
    def enough(self) -> bool:
        """Whether there are usable steps enough for a statistic."""
        return int(self.usable.sum()) >= ENOUGH

    def events(self, kind: str) -> list[Event]:
        """The run's events of one kind that concern this optimizer, since the job's last start."""
        of_kind = [
            e
            for e in self.run.events
            if e.kind == kind and int(e.data.get("optimizer", self.optimizer)) == self.optimizer
        ]
        earlier = self._of_earlier_start(np.array([e.step or 0 for e in of_kind], np.int64))
        return [e for e, gone in zip(of_kind, earlier, strict=True) if e.step is None or not gone]

    @cached_property
    def first_broken(self) -> int:
        """Index of the first step with a NaN or inf; ask only where `broken` has one."""
        return int(np.flatnonzero(self.broken)[0])

    @cached_property
    def amp(self) -> bool:
        """Whether a loss scale was at work, so that single overflows are its normal search."""
        scales = self.loss_scale[np.isfinite(self.loss_scale)]
        return bool((scales != 1).any()) or bool(self.info.get("amp"))

    @cached_property
    def spikes(self) -> Array:
        """Places of the spikes among the usable steps."""
        return spikes(self.norm[self.usable], losses=self.loss[self.usable])

    @cached_property
    def lost(self) -> bool:
        """Whether gradients with a NaN or inf reached the weights: what follows is their mark."""
        return bool((self.broken & ~self.skipped).any())


def _comes_later(here: Array) -> Array:
    """For each place, whether one after it is set."""
    later = np.zeros(len(here), dtype=bool)
    later[:-1] = np.logical_or.accumulate(here[:0:-1])[::-1]
    return later
