"""Recovery of a Keras training: what is copied and put back, and how a rate is lowered.

It acts between two steps, from `Steady.record`, which `GradientMonitor` calls after every batch.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import keras
import numpy as np

from steadygrad.errors import SteadyGradWarning
from steadygrad.keras.engines import to_numpy
from steadygrad.keras.hook import Hook
from steadygrad.keras.internals import loss_tracker, own_rate
from steadygrad.policies.gated import CAP, LIMIT
from steadygrad.recovery.compiled import (
    Again,
    CompiledRecovery,
    FinishedStep,
    WriteEvent,
    is_finite,
    rounded_up,
)
from steadygrad.recovery.events import RecoveryEvent
from steadygrad.recovery.judge import OPEN, Ahead
from steadygrad.recovery.ladder import Ladder
from steadygrad.runlog.notice import warn

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from steadygrad.typing import Array

Loss = tuple[float, float]
"""Sum of the losses since the epoch began, and their weight."""


class VariableValues(NamedTuple):
    """One snapshot: variables and their values, on the host."""

    variables: list[keras.Variable]
    values: list[NDArray[np.generic]]


class KerasTraining:
    """What one model's steps write.

    Args:
        model: the compiled model.
        optimizer: the attached one.
        hook: what stands inside it.
    """

    def __init__(self, model: keras.Model, optimizer: keras.Optimizer, hook: Hook) -> None:
        self._model, self._optimizer, self._hook = model, optimizer, hook
        self._forward: list[tuple[keras.Variable, Array]] = []
        self._loss: list[tuple[keras.Variable, NDArray[np.generic]]] = []
        self._seen: Loss = (0.0, 0.0)
        self._policy: set[int] = set()  # a policy's memory may begin with inf

    def capture(self) -> tuple[VariableValues, int]:
        variables = self._variables()
        values = [np.array(to_numpy(variable)) for variable in variables]
        return VariableValues(variables, values), sum(value.nbytes for value in values)

    def holds_only_finite(self, content: VariableValues) -> bool:
        trained = {id(v) for v in content.variables} - self._policy
        pairs = zip(content.variables, content.values, strict=True)
        return all(is_finite(value) for variable, value in pairs if id(variable) in trained)

    def weights_are_finite(self) -> bool:
        return all(is_finite(to_numpy(v)) for v in self._model.trainable_variables)

    def put_back(self, content: VariableValues) -> None:
        _put_back(list(zip(content.variables, content.values, strict=True)))
        _put_back(self._loss)

    def note_forward(self) -> None:
        moved = [v for v in self._model.non_trainable_variables if "float" in str(v.dtype)]
        self._forward = [(v, keras.ops.copy(v.value)) for v in moved]
        tracker = loss_tracker(self._model)
        self._loss = [(v, to_numpy(v).copy()) for v in tracker.variables] if tracker else []

    def undo_forward(self) -> None:
        _put_back(self._forward)
        _put_back(self._loss)

    def begin_epoch(self) -> None:
        """The average of the losses begins anew."""
        self._seen = (0.0, 0.0)
        self._loss = [(v, np.zeros_like(value)) for v, value in self._loss]

    def loss(self) -> float | None:
        """The loss since the last call; None where nobody averages it."""
        tracker = loss_tracker(self._model)
        if tracker is None or not hasattr(tracker, "total"):
            return None
        total, count = float(to_numpy(tracker.total)), float(to_numpy(tracker.count))
        before, counted = self._seen
        if np.isfinite(total):  # else it is put back
            self._seen = total, count
        weight = count - counted
        return (total - before) / weight if weight > 0 else None

    def _variables(self) -> list[keras.Variable]:
        """All that is trained, once each: weights, averages, generators, slots, scale, policy."""
        outer = getattr(self._model, "optimizer", None)
        candidates = [
            *self._model.variables,
            *self._optimizer.variables,
            *getattr(outer, "variables", []),
        ]
        own = {id(variable) for variable in self._hook.state.own_variables}
        own.add(id(own_rate(self._optimizer)))  # the script's and recovery's, at every step
        self._policy = {id(variable) for variable in self._hook.state.all}
        return list({id(v): v for v in candidates if id(v) not in own}.values())


def _put_back(copies: Sequence[tuple[keras.Variable, Array | NDArray[np.generic]]]) -> None:
    """Assign copies: JAX donates what a variable holds to the next step."""
    for variable, value in copies:
        copied = value.copy() if isinstance(value, np.ndarray) else keras.ops.copy(value)
        variable.assign(copied)


class KerasRecovery:
    """Judges the steps of one Keras optimizer.

    Args:
        ladder: what may be done.
        model: the compiled model.
        optimizer: the attached one.
        hook: what stands inside it.
        write_event: takes what was done, for the run file.
    """

    def __init__(
        self,
        ladder: Ladder,
        model: keras.Model,
        optimizer: keras.Optimizer,
        hook: Hook,
        write_event: WriteEvent,
    ) -> None:
        self.training = KerasTraining(model, optimizer, hook)
        self._recovery = CompiledRecovery(ladder, self.training, write_event)
        self._optimizer, self._hook = optimizer, hook
        self._ahead = OPEN
        self._rates: tuple[float, float] | None = None
        self.judged = 0

    @property
    def acts(self) -> list[RecoveryEvent]:
        """What was done so far."""
        return self._recovery.acts

    def record_in(self, run: os.PathLike[str]) -> None:
        """Say where the run file is."""
        self._recovery.run = run

    def after_step(self, figures: FinishedStep, again: Again | None = None) -> None:
        """A step is over.

        Args:
            figures: what it shows.
            again: as `Steady.record` has it.

        Raises:
            RecoveryError: the ladder has nothing left.
        """
        self.judged += 1
        ahead = self._recovery.after_step(figures, again)
        if (ahead.norm_limit, ahead.cap) != (self._ahead.norm_limit, self._ahead.cap):
            self._hook.state.set_gates({LIMIT: rounded_up(ahead.norm_limit), CAP: ahead.cap})
        self._set_rate(ahead)
        self._ahead = ahead

    def _set_rate(self, ahead: Ahead) -> None:
        """Lower the rate, or give back what was lowered unless the script has set another."""
        if ahead.lr_factor == self._ahead.lr_factor:
            return
        rate = own_rate(self._optimizer)
        if rate is None:
            if ahead.lr_factor < 1.0:
                warn(
                    "recover: a schedule gives this optimizer's learning rate, so it is not "
                    "lowered; leave lower_lr out to say so",
                    SteadyGradWarning,
                )
            return
        now, lowers = float(to_numpy(rate)), ahead.lr_factor < 1.0
        usual, lowered = self._rates or (now, now)
        if now != lowered:  # the script has set another
            usual = now
        wanted = float(np.float32(usual * ahead.lr_factor)) if lowers else usual
        self._rates = (usual, wanted) if lowers else None
        rate.assign(wanted)
