"""One optimizer's steps: measure, decide, act and record, whoever says when.

`Steady` drives this from hooks around the optimizer's `step`, `closures` from inside a step that
evaluates its loss itself. What one step needs of the optimizer (its parameters, names, a loss
scale, the learning rate) is gathered here; what is done with gradients is the `Clipper`'s.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch

from steadygrad import kernels
from steadygrad.errors import NaNOriginWarning, NoGradientsWarning, NonFiniteError, UsageError
from steadygrad.policies import Policy
from steadygrad.runlog import origin as origins
from steadygrad.runlog.records import StepRecord, TensorInfo
from steadygrad.stats import GradientStats
from steadygrad.torch.gradients.batch import Batch
from steadygrad.torch.internals.warn import warn_user
from steadygrad.torch.origin.finder import Finder
from steadygrad.torch.record.outbox import Outbox
from steadygrad.torch.record.recording import Recorder, facts_of
from steadygrad.torch.record.step_record import begun_record, record_of
from steadygrad.torch.step import skipping
from steadygrad.torch.step.clipper import Clipper, Outcome
from steadygrad.torch.step.folding import Folding
from steadygrad.torch.step.naming import ModelNames, Names
from steadygrad.torch.step.table import ParameterTable

Arguments = tuple[tuple[Any, ...], dict[str, Any]]
"""What a step is called with."""


class Attached:
    """What stands beside one optimizer.

    Args:
        optimizer: held weakly: a cycle would keep the weights of a dropped optimizer.
        policy: how to clip.
        on_nonfinite: what to do with gradients that hold NaN or inf.
        run: a path for a new run file, an open `RunWriter`, or None.
        names: what parameters are called.
        index: number of this optimizer within the run.

    Attributes:
        held: a weak reference to the optimizer.
        clipper: measures, decides and acts.
        recorder: takes finished steps; None without a run file.
        table: the optimizer's parameters.
        finder: looks for the origin of a NaN; None unless asked for.
        stats: the last step's figures.
        origin: the last origin found.
        steps: number of steps, skipped ones included.
        seconds: spent here so far.
        loss: told for the step under way; None for nothing.
        closure_loss: what the step's closure gave first.
        loss_scale: of the `GradScaler` whose `step` is under way; None outside.
        quiet: nothing is warned of.
        tells_origins: an origin is warned of.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        policy: Policy,
        on_nonfinite: str,
        run: Any,
        names: Names | None,
        index: int,
    ) -> None:
        self.held = weakref.ref(optimizer)
        self.clipper = Clipper(policy, on_nonfinite)
        facts = {} if run is None else facts_of(optimizer, policy.spec(), on_nonfinite, index)
        self.recorder = None if run is None else Recorder(run, facts)
        self.table = ParameterTable(names, index)
        self.finder: Finder | None = None
        self.stats: GradientStats | None = None
        self.origin: origins.Origin | None = None
        self.steps = 0
        self.seconds = 0.0
        self.loss: Any = None
        self.closure_loss: Any = None
        self.loss_scale: torch.Tensor | None = None
        self.quiet = False
        self.tells_origins = True
        self.heard: Callable[[], Any] = _nothing_heard
        self._names, self._index = names, index
        self._last: StepRecord | None = None
        self._present: list[int] | None = None
        self._announced: tuple[TensorInfo, ...] | None = None
        self._way: skipping.Way | None = None
        self._booked = 0.0
        self._folding = Folding()
        self._outbox = Outbox()
        self._taken: list[tuple[torch.Tensor, torch.Tensor | None]] = []

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """The optimizer.

        Raises:
            UsageError: nothing else holds it any more.
        """
        optimizer = self.held()
        if optimizer is None:
            raise UsageError("the optimizer that was attached to is gone; keep a variable for it")
        return optimizer

    @property
    def last(self) -> StepRecord | None:
        """The last step's record; waits for figures on a device. None before the first step."""
        self._empty()
        return self._last

    # -- one step ----------------------------------------------------------------------------

    def act(self, fold: bool = False) -> bool:
        """Measure, decide, act and record.

        Args:
            fold: a coefficient may be handed to a fused optimizer, whose step follows at once.

        Returns:
            Whether the step must be skipped.
        """
        outcome = self.process(fold)
        self.finish(outcome)
        # where nothing was asked for, a fused optimizer heeds the scaler's own flag
        return outcome.skip is True and self.clipper.on_nonfinite != "propagate"

    def process(self, fold: bool = False) -> Outcome:
        """`act` without the record.

        Raises:
            NonFiniteError: gradients are not finite and that is to raise.
        """
        started = time.perf_counter()
        batch = self._gather()
        ways = (self._scale, self._skip) if fold else ()
        scaled = self.loss_scale is not None  # then the scaler drops overflowing steps itself
        try:
            outcome = self.clipper.process(batch, self.steps, scaled, *ways)
        except NonFiniteError as error:
            raise self._explained(error, batch) from None
        if self.finder is not None:
            self._seek_origin(outcome.stats)
        self.seconds += time.perf_counter() - started
        return outcome

    def overflowed(self) -> None:
        """A `GradScaler` found an overflow and calls no step: measure, and record that."""
        batch = self._gather()
        stats = self.clipper.measure(batch)
        self._seek_origin(stats)
        self.finish(self.clipper.skipped(stats, self._present))
        if self.finder is not None:
            self.finder.stepped()

    def finish(self, outcome: Outcome) -> None:
        """Record a step; the next one begins."""
        started = time.perf_counter()
        stats = self.stats = outcome.stats
        lr = self.optimizer.param_groups[0].get("lr")
        known = (self.steps, outcome, self._step_loss(), lr, self.loss_scale, self._index)
        if self.recorder is not None:
            self.recorder.sample(self.steps, self.table.params)
        if isinstance(stats.total_norm, torch.Tensor):
            self._outbox.send(*begun_record(*known), stats, self._present)
            self._empty(wait=False)
        else:
            if self._outbox.under_way:
                self._empty()
            self._deliver(record_of(*known), stats, self._present)
        self.steps += 1
        self.loss = self.closure_loss = None
        self.seconds += time.perf_counter() - started
        if self.recorder is not None:
            self.recorder.spent(self.seconds - self._booked)
            self._booked = self.seconds

    def skipped(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Arguments:
        """The arguments with which the step that follows does nothing."""
        if self._way is None:
            self._way = skipping.find_way(self.optimizer, *args[1:], **kwargs)
        if self._way is skipping.without_gradients:
            self._taken = [(p, p.grad) for p in self.table.params]
        return (self._way(self.optimizer), *args[1:]), kwargs

    def recover(self) -> None:
        """Undo what was done for one step only; also after a step that raised."""
        if self._folding.handed:
            self._folding.take_back()
        while self._taken:
            parameter, grad = self._taken.pop()
            parameter.grad = grad

    def close(self) -> None:
        """Deliver what is under way, and end."""
        if self.finder is not None:
            self.finder.end()
        if isinstance(self._names, ModelNames):
            self._names.finish()
        self._empty()
        if self.recorder is not None:
            self.recorder.close()

    def _scale(self, grads: Sequence[torch.Tensor], coef: Any) -> None:
        if not self._folding.scale(self.optimizer, grads, coef):
            kernels.scale_(grads, coef)

    def _skip(self, flag: torch.Tensor) -> bool:
        return self._folding.skip(self.optimizer, flag)

    # -- what a step is made of --------------------------------------------------------------

    def _gather(self) -> Batch:
        optimizer, table = self.optimizer, self.table
        self._follow(optimizer)
        if self._announced is not table.infos:
            self._announce()
        batch = table.batch(_carried_scale(optimizer), optimizer.state)
        self._present = batch.present
        if not batch.grads:
            self._warn_of_nothing()
        return batch

    def follow_table(self) -> None:
        """Take note of parameters that were added to the optimizer."""
        self._follow(self.optimizer)

    def _follow(self, optimizer: torch.optim.Optimizer) -> None:
        if self.table.refresh(optimizer):
            self.clipper.memory.follow(self.table.names, self.table.sizes)

    def _announce(self) -> None:
        """Name the parameters in the run file, once the first forward pass is over."""
        if isinstance(self._names, ModelNames) and self._names.finish():
            self.table.describe(self.optimizer)
        if self._announced is not self.table.infos and self.recorder is not None:
            self._empty()  # its steps are of the tensors announced before
            self.recorder.add_tensors(self.table.infos)
        self._announced = self.table.infos

    def _warn_of_nothing(self) -> None:
        if not self.quiet:
            self.quiet = True
            warn_user(
                f"step {self.steps}: no parameter of this {type(self.optimizer).__name__} has a "
                "gradient, so nothing is clipped: call loss.backward() before optimizer.step(), "
                "and zero_grad() after it",
                NoGradientsWarning,
            )

    def _step_loss(self) -> Any:
        """What was told, else what the closure gave, else what was heard."""
        told = self.closure_loss if self.loss is None else self.loss
        heard = self.heard()  # asked for in any case: it then begins to sum anew
        return heard if told is None else told

    def _empty(self, wait: bool = True) -> None:
        for delivery in self._outbox.take(wait):
            self._deliver(*delivery)

    def _deliver(self, record: StepRecord, stats: GradientStats, present: list[int] | None) -> None:
        self._last = record
        if self.recorder is not None:
            self.recorder.write(record, stats, present)

    # -- where a NaN came from ---------------------------------------------------------------

    def _explained(self, error: NonFiniteError, batch: Batch) -> NonFiniteError:
        """The error, with what is known of the origin."""
        found = self._seek_origin(self.clipper.measure(batch))
        return error if found is None else NonFiniteError(f"{error}. {found}")

    def _seek_origin(self, stats: GradientStats) -> origins.Origin | None:
        if self.finder is None:
            return None
        found = self.finder.check(
            self.steps,
            stats.nonfinite,
            stats.names,
            self.table.params,
            self.table.names,
            self.loss_scale,
            stats.total_norm,
        )
        if found is not None:
            self._tell_origin(found)
        return found

    def _tell_origin(self, origin: origins.Origin) -> None:
        self.origin = origin
        if self.recorder is not None:
            data = {**origin.as_json(), "optimizer": self._index}
            self.recorder.writer.write_event(origins.EVENT, data, origin.step)
        if self.tells_origins and self.clipper.on_nonfinite != "raise":
            warn_user(str(origin), NaNOriginWarning)


def _nothing_heard() -> None:
    return None


def _carried_scale(optimizer: torch.optim.Optimizer) -> Any:
    """The loss scale that a GradScaler leaves to a fused optimizer to divide by."""
    if getattr(optimizer, "_step_supports_amp_scaling", False):
        return getattr(optimizer, "grad_scale", None)
    return None
