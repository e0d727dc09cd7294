"""One optimizer's steps: measure, decide, act and record, whoever says when.

`Steady` drives this from hooks around the optimizer's `step`. What one step needs of the optimizer
(its parameters, names, a loss scale, the learning rate) is gathered here; what is done with
gradients is the `Clipper`'s, what a single step knows is in its `StepInFlight`.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable, Mapping, Sequence
from operator import attrgetter
from time import perf_counter, time
from typing import Any, Literal

import numpy as np
import torch

from steadygrad.errors import NonFiniteError, UsageError
from steadygrad.kernels import native, seal_gradients, sparse_seen
from steadygrad.kernels.native import Stamped
from steadygrad.policies import NoClip, Policy, State
from steadygrad.recovery.judge import StepVerdict
from steadygrad.recovery.ladder import Ladder
from steadygrad.stats import GradientStats
from steadygrad.torch.clip_calls.clips import UNREAD
from steadygrad.torch.distributed.layout import NOWHERE
from steadygrad.torch.distributed.ownership import Groups, refuse_beyond_norms
from steadygrad.torch.gradients.batch import GradientBatch
from steadygrad.torch.gradients.outcome import UNTOUCHED, StepOutcome
from steadygrad.torch.gradients.parameters import parameters_of
from steadygrad.torch.gradients.pieces import scale_each_once
from steadygrad.torch.internals.quiet import CallTerms, StepTerms
from steadygrad.torch.internals.scaler import HANDLE
from steadygrad.torch.internals.state_makers import STATE_MAKERS, only_makes_state
from steadygrad.torch.record.journal import Journal
from steadygrad.torch.record.losses import StepLosses
from steadygrad.torch.record.sealed import MeasuredStep
from steadygrad.torch.recovery.recovering import Recovering
from steadygrad.torch.recovery.snapshots import Snapshots
from steadygrad.torch.step.clipper import Clipper
from steadygrad.torch.step.closures import Arguments, closure_of, with_acting_closure
from steadygrad.torch.step.folding import Folding
from steadygrad.torch.step.in_flight import StepInFlight
from steadygrad.torch.step.inner import inner_optimizers, steps_running, works_beside
from steadygrad.torch.step.lone import (
    sentence_on,
    sentence_on_beside,
    sentence_on_made,
    sentence_on_replaced,
    watch_inner,
    without_gradients,
)
from steadygrad.torch.step.naming import ModelNames, Names
from steadygrad.torch.step.origins import OriginSearch
from steadygrad.torch.step.patterns import by_parameter_groups
from steadygrad.torch.step.skipping import Skipping, stock_skipping
from steadygrad.torch.step.table import ParameterTable
from steadygrad.torch.step.telling import Telling
from steadygrad.torch.step.trial import skipping_of
from steadygrad.vocabulary import OnNonfinite

SPENT_EVERY = 16
"""Steps after which the run file is told what was spent on them."""

LOOKED_INTO = 2
"""Steps of a wrapper at which it is seen what gradients its inner optimizer is given."""

REFUSED_FOR = 64
"""Steps for which gradients that C has refused are not offered to it again."""

_GRAD = attrgetter("grad")


class Engine(Stamped):
    """What is done at each step of one optimizer.

    Args:
        optimizer: referred to weakly: a cycle would keep the weights of a dropped optimizer.
        policy: how to clip.
        on_nonfinite: what to do with gradients that hold NaN or inf.
        run: a path for a new run file, an open `RunWriter`, or None.
        names: what parameters are called.
        index: number of this optimizer within the run.
        process_group: as `attach` has it.

    Raises:
        AttachError: steps may have to be skipped, and this optimizer cannot be.

    Attributes:
        clipper: measures, decides and acts.
        journal: takes finished steps.
        origins: finds out where a NaN came from, once that is asked for.
        recovery: judges every step and goes back where one is struck; None where not asked for.
        index: number of this optimizer within the run.
        losses: the loss of the step under way.
        skipping: how the optimizer is skipped; None where no step may be.
        beside: optimizers inside of it that move other weights: their steps are steps of their own.
        steps: number of steps, skipped ones included.
        seconds: spent here so far.
        step: the step under way; None between steps.
        sealed: the last step's figures as C wrote them, where nobody has asked for them yet.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        policy: Policy,
        on_nonfinite: OnNonfinite,
        run: object,
        names: Names | None,
        index: int,
        process_group: Groups = None,
    ) -> None:
        self._optimizer = weakref.ref(optimizer)
        self._table = ParameterTable(names, index, process_group)
        self._table.refresh(optimizer)
        policy = by_parameter_groups(policy, optimizer, self._table.names)
        self.clipper = Clipper(policy, on_nonfinite)
        self.clipper.memory.follow(self._table.names, self._table.sizes)
        refuse_beyond_norms(self._table.spread, policy)
        self.skipping = _skipping(optimizer, self.clipper)
        self.journal = Journal(optimizer, policy.spec(), on_nonfinite, run, index)
        self.origins = OriginSearch(index)
        self.recovery: Recovering | None = None
        self._stats: GradientStats | None = None
        self.sealed: bytearray | None = None
        self._looked_at = StepInFlight()
        self._refused_before = 0
        self.steps = 0
        self.seconds = 0.0
        self.step: StepInFlight | None = None
        self.index = index
        self._names = names
        self._folding = Folding()
        self.losses = StepLosses()
        self._loss_scale: torch.Tensor | None = None
        self._steps_before_scaler = 0
        self._ignores_closure = self.skipping is not None and self.skipping.ignores_closure
        self._makes_gradients: set[bool] = set()  # where it has a closure, and where it has none
        self._idle: Callable[[], None] | None = None
        self._telling = Telling()
        self._inner_hooks = watch_inner(optimizer, self._inner_stepped)
        inner = inner_optimizers(optimizer)
        self.beside = weakref.WeakSet(each for each in inner if works_beside(optimizer, each))

    @property
    def stats(self) -> GradientStats | None:
        """The last step's figures; None before the first."""
        if self.sealed is not None:
            read, table = native.opened(self.sealed), self._table
            self._stats = GradientStats(table.names, *read[:4], table.sizes, read.total)
            self.sealed = None
        return self._stats

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """The optimizer.

        Raises:
            UsageError: nothing else refers to it any more.
        """
        optimizer = self._optimizer()
        if optimizer is None:
            raise UsageError("the optimizer that was attached to is gone; keep a variable for it")
        return optimizer

    def attached_to(self) -> torch.optim.Optimizer | None:
        """The optimizer; None where nothing else refers to it any more."""
        return self._optimizer()

    def is_of(self, optimizer: torch.optim.Optimizer) -> bool:
        """Whether this engine is attached to that very optimizer, and not to a copy of it."""
        return self._optimizer() is optimizer

    def recover(self, ladder: Ladder, model: torch.nn.Module | None) -> None:
        """Judge every step from now on; any of them may have to be dropped.

        Args:
            ladder: what may be done.
            model: whose buffers are put back too.

        Raises:
            UsageError: the snapshots do not fit the memory budget.
            AttachError: this optimizer cannot be skipped.
        """
        optimizer, clipper = self.optimizer, self.clipper
        snapshots = Snapshots(ladder, optimizer, model, clipper.memory, self.index)
        write_event = self.journal.write_event
        self.recovery = Recovering(ladder, optimizer, snapshots, write_event, self.index)
        writer = self.journal.writer
        self.recovery.run = None if writer is None else writer.path
        clipper.may_skip = clipper.may_stop = True
        self.skipping = skipping_of(optimizer)

    def restore(self, recovery: Recovering, folder: str | None) -> int:
        """Go on from the newest snapshot on disk.

        Args:
            recovery: of this engine.
            folder: as `Recovering.restore` has it.

        Returns:
            Number of the step to go on with.
        """
        self.steps = recovery.restore(self.optimizer, folder)
        return self.steps

    # -- one step ----------------------------------------------------------------------------

    def before(
        self, optimizer: torch.optim.Optimizer, args: tuple[object, ...], kwargs: dict[str, object]
    ) -> Arguments | None:
        """The hook before a step: act on its gradients, or have its closure do so.

        Args:
            optimizer: whose step it is; of a shadow or a copy nothing is done.
            args: what it was called with, the optimizer first.
            kwargs: the same, by name.

        Returns:
            The arguments to go on with; None for the same.

        Raises:
            NonFiniteError: gradients are not finite and that is to raise.
        """
        if self._optimizer() is not optimizer:
            return None
        if not optimizer.state and STATE_MAKERS in sys.modules and only_makes_state():
            return None
        if self.step is not None and steps_running(optimizer, 2):  # a `super().step()`
            self.step.depth += 1
            return None
        try:
            return self._begin(args, kwargs)
        except NonFiniteError:
            raise
        except Exception as error:
            self.fault(error)
            return None

    def terms(self) -> StepTerms | None:
        """The terms on which the next step is only looked at; None where it is not."""
        quiet, table, journal, losses = self.clipper.quiet, self._table, self.journal, self.losses
        if (
            quiet is None
            or self.steps < self._refused_before
            or self._makes_gradients
            or self._loss_scale is not None
            or self.origins.wanted
            or self.recovery is not None
            or table.spread is not NOWHERE
            or not table.params
            or journal.announced is not table.infos
            or not journal.takes_sealed
        ):
            return None
        recorder = journal.recorder
        way = None if recorder is None else recorder.writer.short_way(recorder.step_bytes)
        if recorder is None or way is None:
            return None
        rest, sparse, unusual = quiet.rest(table.params), sparse_seen(), recorder.sampler.unusual
        same, empty = journal.sealing
        return StepTerms(
            optimizer=self._optimizer,
            same=(
                (self, "clipper", self.clipper),
                (self, "_loss_scale", None),
                (self, "recovery", None),
                (self.origins, "wanted", False),
                (table, "spread", NOWHERE),
                (table, "infos", table.infos),
                (journal, "announced", table.infos),
                (losses, "heard", losses.heard),
                sparse,
                *same,
                *rest.same,
            ),
            empty=((self, "_makes_gradients"), *empty),
            now=((self, "step", None), (losses, "added_up", None)),
            modules=sys.modules,
            maker=STATE_MAKERS,
            listed=table.listed,
            params=table.params,
            sparse=sparse[2],
            rest=rest.empty,
            unread=UNREAD,
            clocks=rest.clocks,
            meter=rest.meter,
            passes=quiet.passes,
            seal=self._seal,
            heard=losses.heard,
            engine=self,
            under_way=self._looked_at,
            sampler=recorder.sampler,
            sample=recorder.sample,
            journal=journal,
            kind=MeasuredStep,
            number=self.index,
            ids=recorder.ids,
            time=time,
            queue=way.queue,
            append=way.append,
            room=way.room,
            shut=way.shut,
            file=journal.seal,
            unusual=unusual,
            waiting=unusual.waiting,
            notice=recorder.sampler.notice,
            clock=perf_counter,
            spent=journal.spent,
            every=SPENT_EVERY,
        )

    def _seal(self, params: list[torch.Tensor]) -> bytearray | Literal[False] | None:
        """Read gradients that C has refused.

        Returns:
            Their figures; None where one is missing, and False where it is not to be asked soon.
        """
        figures = seal_gradients(params)
        if figures is None and type(None) not in set(map(type, map(_GRAD, params))):
            self._refused_before = self.steps + REFUSED_FOR  # C may need a millisecond to refuse
            return False
        return figures

    def after_terms(self) -> CallTerms:
        """The terms on which there is nothing to do after a step but to note its end."""
        return CallTerms(
            optimizers=(self._optimizer,),
            now=((self, "step", self._looked_at), (self._looked_at, "depth", 1)),
            empty=self.journal.stopping,
            sets=((self, "step", None),),
        )

    def _begin(self, args: tuple[object, ...], kwargs: dict[str, object]) -> Arguments | None:
        self.abandon()
        with_closure = bool(kwargs or len(args) > 1) and closure_of(args, kwargs) is not None
        step = self.step = StepInFlight()
        if with_closure in self._makes_gradients:
            return None  # those that are there are of the step before
        self._listens(False)
        if with_closure and not (self._ignores_closure and self._has_gradients()):
            step.with_closure = True
            self._prepare_closure()
            if self.recovery is not None:
                self.recovery.snapshots.before_closure(self.optimizer, self.steps)
            return with_acting_closure(self, step, args, kwargs)
        outcome = self.process(fold=self.recovery is None)
        if self._inner_hooks and self.steps < LOOKED_INTO and not step.bare:
            step.acted_on = [p.grad for p in self._table.params if p.grad is not None]
        skips = outcome.skip is True
        step.outcome = outcome if self.clipper.waits and not skips else None
        self._record(outcome, self.losses.take(None))
        # an optimizer that a GradScaler leaves an overflow to heeds the scaler's own flag
        if not (skips and self.clipper.may_stop and self.skipping):
            return None
        step.skip = True
        stand_in, step.put_back = self.skipping.whole(self.optimizer)
        return (stand_in, *args[1:]), kwargs

    def after(self, optimizer: torch.optim.Optimizer, args: object, kwargs: object) -> None:
        """The hook after a step.

        Raises:
            TrainingStopped: an alert asked for that.
        """
        if self._optimizer() is not optimizer:
            return
        if self.step is not None:
            self._end(self.step)
        if self.step is None:
            self.journal.stop_if_asked()

    def _end(self, step: StepInFlight) -> None:
        step.depth -= 1
        if step.depth > 0:
            return
        try:
            if step.outcome is not None and self.clipper.waits and step.evaluations < 2:
                self._look_back(step, step.outcome)
            if step.with_closure:
                self._end_closure(step)
            self.abandon()
            if self.recovery is not None:
                self.recovery.step_ends(self.optimizer, self.steps - 1)
            self._stepped()
            if step.bare:
                self._was_bare(step.with_closure)
        except Exception as error:
            self.fault(error)

    def _look_back(self, step: StepInFlight, outcome: StepOutcome) -> None:
        """What the optimizer's own code has clipped before it moved the weights."""
        batch = self._table.batch(_carried_scale(self.optimizer), self.optimizer.state)
        with np.errstate(all="ignore"):
            step.outcome = self.clipper.after_step(outcome, batch)
        self._stats = step.outcome.stats

    def _was_bare(self, with_closure: bool) -> None:
        """A step is over that had no gradients when they were looked for."""
        if self._has_gradients():
            self._makes_gradients.add(with_closure)
        if with_closure not in self._makes_gradients:
            self._telling.warn(without_gradients(self.optimizer, self.steps - 1))
        elif self._idle is None:
            self._telling.warn(sentence_on_made(self.optimizer, with_closure))
        else:
            self._idle()

    def _listens(self, listens: bool) -> None:
        """Start or stop writing down what the training computes, for a replay."""
        if self.origins.wanted:
            self.origins.begin() if listens else self.origins.rest()
        if self.recovery is not None:
            self.recovery.again.begin() if listens else self.recovery.again.rest()

    def _stepped(self) -> None:
        if self.origins.wanted:
            self.origins.stepped()
        if self.recovery is not None:
            self.recovery.again.stepped()

    def survive(
        self,
        tell: Callable[[Exception], None],
        tell_user: Callable[[str], None],
        tell_of_ranks: Callable[[str], None],
    ) -> None:
        """From now on, let no fault or warning of ours into the training: it goes on as it is."""
        self._telling.survive(tell, tell_user)
        self._table.tell = self.journal.tell = tell_of_ranks

    def fault(self, error: Exception) -> None:
        """Raise a fault of ours, or tell it, where the training is to survive it."""
        self.abandon()
        self._telling.fault(error)

    def abandon(self) -> None:
        """Undo what was done for one step only; also after a step that raised."""
        if self._folding.handed:
            self._folding.take_back()
        step, self.step = self.step, None
        if step is not None and step.record is not None:
            step.file()
        if step is not None and (step.put_back or step.snapshot or step.rates):
            step.finish()

    def flush(self) -> None:
        """Wait until every step, and the one that has raised, can be read from the run file."""
        if self.step is not None:
            self.step.file()
        self.journal.flush()

    def process(self, fold: bool = False) -> StepOutcome:
        """Measure the gradients that are there, decide and act.

        Args:
            fold: a coefficient may be handed to a fused optimizer, whose step follows at once.

        Raises:
            NonFiniteError: gradients are not finite and that is to raise.
        """
        with np.errstate(all="ignore"):  # figures may be inf, and a training may have NumPy raise
            return self._process(fold)

    def _process(self, fold: bool) -> StepOutcome:
        started = perf_counter()
        batch = self._gather()
        ways = (self._scale, self._skip) if fold else ()
        before = self.clipper.memory.state
        scaled = self._loss_scale is not None  # then the scaler drops overflowing steps itself
        try:
            outcome = self.clipper.process(batch, self.steps, scaled, *ways)
        except NonFiniteError as error:
            raise self._explained(error, batch) from None
        if self.origins.wanted:
            self._seek_origin(outcome.stats)
        if self.recovery is not None and (self.step is None or not self.step.evaluations):
            outcome = self._judged(self.recovery, outcome, batch, before)
        self.seconds += perf_counter() - started
        return outcome

    def _judged(
        self, recovery: Recovering, outcome: StepOutcome, batch: GradientBatch, before: State | None
    ) -> StepOutcome:
        """The outcome after recovery has had its say."""
        norm, loss = float(outcome.stats.total_norm), self.losses.so_far()
        scaled, dropped = self._loss_scale is not None, outcome.skip is True
        memory = self.clipper.memory
        after, memory.state = memory.state, before  # a snapshot is of what was before the step
        verdict = recovery.judge(self.optimizer, self.steps, loss, norm, scaled, dropped)
        if verdict.drops:
            return outcome._replace(skip=True, applied=UNTOUCHED)
        memory.state = after
        if not dropped:
            outcome = self._held_to(recovery, verdict, outcome, batch)
        return outcome

    def _held_to(
        self, recovery: Recovering, verdict: StepVerdict, outcome: StepOutcome, batch: GradientBatch
    ) -> StepOutcome:
        """Shrink gradients and lower the rate of one step, as far as a verdict says so."""
        if verdict.lr_factor < 1.0 and self.step is not None:
            self.step.slow_down(self.optimizer, verdict.lr_factor)
        return recovery.shrunk(self.steps, verdict, outcome, batch)

    def _record(self, outcome: StepOutcome, loss: object, sample: bool = True) -> None:
        """Record a step; the next one begins."""
        started = perf_counter()
        self._stats, self.sealed = outcome.stats, None
        step = self.steps
        self.steps = step + 1  # at once: another thread may step while this one is recorded
        if sample:
            self.journal.sample(step, self._table.params)
        groups = self.optimizer.param_groups
        lr = groups[0].get("lr") if groups else None
        scale, present = self._loss_scale, self._table.present

        def file(outcome: StepOutcome) -> None:
            there = present if outcome.present is None else outcome.present
            self.journal.file(step, outcome, loss, lr, scale, there)

        if self.step is not None and not self.step.with_closure and self.step.outcome is not None:
            self.step.record = file
        else:
            file(outcome)
        self.seconds += perf_counter() - started
        if self.steps % SPENT_EVERY == 0:
            self.journal.spent(self.seconds)

    def _scale(self, grads: Sequence[torch.Tensor], coef: object) -> None:
        optimizer = self.optimizer
        fused = getattr(optimizer, "_step_supports_amp_scaling", False)
        if not (fused and self._folding.scale(optimizer, grads, coef)):
            scale_each_once(grads, coef)

    def _skip(self, flag: torch.Tensor) -> bool:
        return self._folding.skip(self.optimizer, flag)

    # -- steps with a closure ----------------------------------------------------------------

    def evaluation_begins(self) -> None:
        """The closure is about to run."""
        self._listens(True)

    def evaluation_ends(self, first: bool) -> None:
        """The closure has run, and nothing was done with its gradients yet."""
        self._listens(False)
        if first:
            self.journal.sample_activations(self.steps, self._table.params)

    def _prepare_closure(self) -> None:
        """Sample the weights before the optimizer moves them."""
        started = perf_counter()
        self._follow(self.optimizer)
        self._announce()
        self.journal.sample_weights(self.steps, self._table.params)
        self.seconds += perf_counter() - started

    def _end_closure(self, step: StepInFlight) -> None:
        if step.outcome is None:
            if not self._ignores_closure:
                self._telling.warn(
                    f"step {self.steps}: this {type(self.optimizer).__name__} did not evaluate the "
                    "closure that its step() was given, so this step's gradients were not clipped; "
                    "from the next step on they are clipped as they are when step() is called"
                )
            self._ignores_closure = True
            step.outcome = StepOutcome(self.clipper.measure(self._gather()))
        self._record(step.outcome, self.losses.take(step.closure_value), sample=False)

    # -- what a step is made of --------------------------------------------------------------

    def _gather(self) -> GradientBatch:
        optimizer, table = self.optimizer, self._table
        self._follow(optimizer)
        if self.journal.announced is not table.infos:
            self._announce()
        batch = table.batch(_carried_scale(optimizer), optimizer.state)
        if self.step is not None:
            self.step.bare = not batch.grads  # it may yet make some
        elif not batch.grads:
            self._telling.warn(without_gradients(optimizer, self.steps))
        return batch

    def _has_gradients(self) -> bool:
        self._follow(self.optimizer)
        return any(parameter.grad is not None for parameter in self._table.params)

    def _follow(self, optimizer: torch.optim.Optimizer) -> None:
        """Take note of parameters that were added to the optimizer."""
        if self._table.refresh(optimizer):
            self.clipper.memory.follow(self._table.names, self._table.sizes)

    def _announce(self) -> None:
        """Name the parameters in the run file, once the first forward pass is over."""
        if isinstance(self._names, ModelNames) and self._names.finish():
            self._table.describe(self.optimizer)
        self.journal.announce(self._table.infos)

    def _inner_stepped(self, inner: torch.optim.Optimizer) -> None:
        step = self.step
        if step is None:
            if not self._makes_gradients:
                self._telling.warn(sentence_on(self.optimizer, inner))
        elif inner in self.beside:
            if not hasattr(inner, HANDLE):
                self._telling.warn(sentence_on_beside(self.optimizer, inner))
        elif step.bare and not step.with_closure and self._has_gradients():
            self._makes_gradients.add(False)
        elif step.acted_on and not step.skip and not isinstance(self.clipper.policy, NoClip):
            grads = [id(p.grad) for p in parameters_of(inner) if p.grad is not None]
            if grads and set(map(id, step.acted_on)).isdisjoint(grads):
                self._telling.warn(sentence_on_replaced(self.optimizer, inner))

    # -- what others tell --------------------------------------------------------------------

    def hear_losses(
        self, since_last_step: Callable[[], object], so_far: Callable[[], object]
    ) -> None:
        """Say where losses come from that nobody tells.

        Args:
            since_last_step: returns the loss since its last call, and starts a new sum.
            so_far: returns the same loss, and goes on adding to it.
        """
        self.losses.heard, self.losses.heard_so_far = since_last_step, so_far

    def measure_through(self, clipper: Clipper) -> None:
        """Measure and act through another clipper from the next step on."""
        self.clipper = clipper

    def act_through(self, clipper: Clipper) -> None:
        """The same, in silence."""
        self.measure_through(clipper)
        self._telling.silent = True

    def when_idle(self, tell: Callable[[], None]) -> None:
        """Say what to do, instead of a warning, once nothing can be seen of the steps here.

        Args:
            tell: called after the step that showed it.
        """
        self._idle = tell

    def scaler_enters(self, scale: torch.Tensor) -> None:
        """`GradScaler.step` begins on the optimizer."""
        self._loss_scale = scale
        self._steps_before_scaler = self.steps

    def scaler_leaves(self) -> None:
        """`GradScaler.step` is over; where it called no `step`, it found an overflow."""
        try:
            if self.steps == self._steps_before_scaler:
                with np.errstate(all="ignore"):
                    self._overflowed()
        except Exception as error:
            self.fault(error)
        finally:
            self._loss_scale = None

    def _overflowed(self) -> None:
        batch = self._gather()
        stats = self.clipper.measure(batch)
        self._seek_origin(stats)
        self._judge_overflow(stats)
        self._record(self.clipper.skipped(stats, batch.present), self.losses.take(None))
        if self.recovery is not None:
            self.recovery.step_ends(self.optimizer, self.steps - 1)
        self._stepped()

    def _judge_overflow(self, stats: GradientStats) -> None:
        if self.recovery is not None:
            loss, norm = self.losses.so_far(), stats.total_norm
            self.recovery.judge(self.optimizer, self.steps, loss, norm, scaled=True, dropped=True)

    # -- the handle's ------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """What `load` takes: names of the tensors, number of steps, the policy's state."""
        self._follow(self.optimizer)
        return {
            "names": list(self._table.names),
            "steps": self.steps,
            "state": self.clipper.memory.export(),
        }

    def names(self) -> tuple[str, ...]:
        """What the optimizer's parameters are called now."""
        self._follow(self.optimizer)
        return self._table.names

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on from a `state`."""
        self.clipper.memory.load(dict(state["state"]))
        self.steps = int(state["steps"])

    def close(self) -> None:
        """Deliver what is under way, and end."""
        self.abandon()
        self.journal.spent(self.seconds)
        if self.recovery is not None:
            self.recovery.close()
        self.origins.end()
        for hook in self._inner_hooks:
            hook.remove()
        if isinstance(self._names, ModelNames):
            self._names.finish()
        self.journal.close()

    # -- where a NaN came from ---------------------------------------------------------------

    def _explained(self, error: NonFiniteError, batch: GradientBatch) -> NonFiniteError:
        """The error, with what is known of the origin."""
        origin = self._seek_origin(self.clipper.measure(batch))
        return error if origin is None else NonFiniteError(f"{error}. {origin}")

    def _seek_origin(self, stats: GradientStats) -> object:
        raises = self.clipper.on_nonfinite == "raise"
        return self.origins.seek(
            self.steps, stats, self._table, self._loss_scale, self.journal.write_event, raises
        )


def _skipping(optimizer: torch.optim.Optimizer, clipper: Clipper) -> Skipping | None:
    return skipping_of(optimizer) if clipper.may_skip else stock_skipping(optimizer)


def _carried_scale(optimizer: torch.optim.Optimizer) -> object:
    """The loss scale that a GradScaler leaves to a fused optimizer to divide by."""
    if getattr(optimizer, "_step_supports_amp_scaling", False):
        return getattr(optimizer, "grad_scale", None)
    return None
