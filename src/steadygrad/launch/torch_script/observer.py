"""What is made of a PyTorch script's backward passes, clip calls and optimizer steps.

Loaded at the script's first backward or step, never before. Each optimizer is
attached to (`steadygrad.torch.attach`) when it first steps; without ``--clip`` it
is given a clipper that changes nothing. A script may train in several threads: one at a time is
in here.
"""

from __future__ import annotations

import math
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Sequence
from types import TracebackType
from typing import Any

import numpy as np
import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

from steadygrad.errors import NonFiniteError
from steadygrad.launch.contracts import RunContext
from steadygrad.launch.torch_script.attachments import Attachments
from steadygrad.launch.torch_script.facts import facts
from steadygrad.launch.torch_script.grad_calls import GradCalls, Pairs, weights_of
from steadygrad.launch.torch_script.graph import leaves_of
from steadygrad.launch.torch_script.loop_facts import LoopWatch
from steadygrad.launch.torch_script.manual import ManualLoop
from steadygrad.policies.choice import resolve
from steadygrad.runlog.clip_calls import CallBook
from steadygrad.runlog.clip_calls import number as number_of
from steadygrad.torch.clip_calls.calls import new_events
from steadygrad.torch.clip_calls.clipcall import Call
from steadygrad.torch.clip_calls.clips import ClipCall, ClipLog, QuietSteps, Unscaling
from steadygrad.torch.distributed.ownership import is_flat
from steadygrad.torch.gradients.batch import GradientBatch
from steadygrad.torch.gradients.outcome import PassedStep
from steadygrad.torch.gradients.parameters import parameters_of
from steadygrad.torch.internals import scaler, sites
from steadygrad.torch.internals.eager import eager
from steadygrad.torch.origin.finder import Finder
from steadygrad.torch.record.losses import Heard, LossMeter
from steadygrad.torch.record.recording import OptimizerRecorder
from steadygrad.torch.step.observing import (
    Clipper,
    ObservingClipper,
    Steady,
    StepOutcome,
    summed_up,
)
from steadygrad.vocabulary import NAN_ORIGIN, SCRIPT_CLIP

MOST_WALKS = 16
UNREAD = PassedStep()


class TorchObserver:
    """Follows one process.

    Args:
        context: the run.

    Attributes:
        overhead: seconds spent here, those of attached optimizers not included.
        losses: of the thread that asks.
        log: the script's clip calls.
    """

    def __init__(self, context: RunContext) -> None:
        self.context = context
        self.overhead = 0.0
        self._clock = _Clock(self)
        self.losses = LossMeter()
        self.log = ClipLog(lambda: self.losses.backwards, self._scale_of)
        self._book = CallBook()
        self._attachments = Attachments(context)
        self._any_scaler = False
        self._told_by_scaler: weakref.WeakSet[torch.optim.Optimizer] = weakref.WeakSet()
        self._steps = 0
        self._elsewhere = 0
        self._walks = 0
        self._by_hand = False
        self._thread_by_hand = 0
        self._seen_loose: set[int] = set()
        self._looked_for_inputs = False
        self._manual = self._new_manual()
        self._amp = False
        self._unscaled: set[int] = set()
        self._finder: Finder | None = None
        self._hears_ends = False
        self._loop = LoopWatch()
        self._grads = GradCalls()
        self.backwards = 0

    # -- backward ------------------------------------------------------------------------------

    def before_backward(self, tensors: Sequence[Any], weights: Sequence[Any] | None) -> None:
        """The script calls backward on these tensors."""
        with self._clock:
            self.backwards += 1
            # first what this backward ends: a step by hand, which has the losses so far
            if self._walks < MOST_WALKS or (self._by_hand and self._waits_for_updates_by_hand()):
                with _figures():
                    self._look_around(tensors)
            elif self._thread_by_hand == threading.get_ident():
                self._by_hand = False
            if not self._loop.rests:
                self._loop.before_backward(tensors, self._attachments.census)
            self.losses.saw(tensors, weights)
            self._amp = self._amp or self.losses.scale is not None

    def after_backward(self) -> None:
        """That backward is done."""
        if self._loop.rests and not self._by_hand:
            return
        with self._clock:
            self._loop.after_backward()
            if self._by_hand and self._thread_by_hand == threading.get_ident():
                self._after_backward_by_hand()

    def _after_backward_by_hand(self) -> None:
        with _figures():
            self._manual.after_backward(self.losses.so_far)
            if self._finder is not None and self._updates_by_hand():
                self._seek_origin(self._finder)

    def after_grad(self, outputs: object, inputs: object, weights: object, results: object) -> None:
        """The script has called `torch.autograd.grad`."""
        with self._clock, _figures():
            pairs = weights_of(inputs, results)
            if not all(isinstance(leaf, torch.nn.Parameter) for leaf, _ in pairs):
                # inputs of a PINN; weights only where no optimizer holds any
                seen = self._steps or self._elsewhere or self._attachments.counted().optimizers()
                pairs = [] if seen else pairs
            if not pairs:
                return
            loose = set(map(id, self._loose([leaf for leaf, _ in pairs])))
            loss = self.losses.heard(
                sites.listed(outputs), None if weights is None else sites.listed(weights)
            )
            own = [pair for pair in pairs if id(pair[0]) not in loose]
            if own:
                self._grads.saw(own, loss)
            elif self._steps == 0 or self._manual.steps:
                self._differentiated_by_hand(pairs, loss)

    def _differentiated_by_hand(self, pairs: Pairs, loss: Heard) -> None:
        self._thread_by_hand = self._thread_by_hand or threading.get_ident()
        if self._thread_by_hand == threading.get_ident():
            self.backwards += 1
            leaves, grads = [leaf for leaf, _ in pairs], [gradient for _, gradient in pairs]
            self._manual.differentiated(leaves, grads, loss.loss)

    def _count_grads(self, parameters: Sequence[torch.Tensor]) -> None:
        """What `torch.autograd.grad` returned is these parameters' gradient: backward passes."""
        if not self._grads:
            return
        calls = self._grads.taken(parameters, self.log.alone(parameters))
        for call in calls:
            self.backwards += 1
            self._loop.before_backward((), self._attachments.census)
            self._loop.after_backward()
            # of several, the script alone knows how it adds them up
            self.losses.take(call.loss if len(calls) == 1 else Heard(math.nan, call.loss.scale))

    def _look_around(self, tensors: Sequence[object]) -> None:
        """Learn the forward order, and whether weights are updated by hand."""
        self._walks += 1
        census = self._attachments.counted()
        leaves = leaves_of([t for t in tensors if isinstance(t, torch.Tensor)])
        census.note_order(leaves)
        loose = self._loose(leaves)
        self._loop.saw_loose(loose)
        # one thread's: to read a gradient that another one accumulates is to crash
        self._thread_by_hand = self._thread_by_hand or (threading.get_ident() if loose else 0)
        if self._thread_by_hand not in (0, threading.get_ident()):
            return
        self._by_hand = bool(loose)
        if loose or self._manual.steps:
            self._manual.before_backward(loose)
        elif self._steps and not self._seen_loose and census.settled():
            self._walks = MOST_WALKS

    def _loose(self, leaves: Iterable[torch.Tensor]) -> list[torch.Tensor]:
        """The leaves that no optimizer holds."""
        census = self._attachments.counted()
        owned = census.owned()
        # FSDP1 steps on views of the flat leaf that backward reaches
        leaves = [leaf for leaf in leaves if not is_flat(leaf)]
        loose = [leaf for leaf in leaves if id(leaf) not in owned]
        new = [leaf for leaf in loose if id(leaf) not in self._seen_loose]
        if new and self._deserve_a_look(new):
            census.refresh()  # their optimizer may be newer than the census
            owned = census.owned()
            loose = [leaf for leaf in leaves if id(leaf) not in owned]
            self._seen_loose = set(map(id, loose))
        return loose

    def _deserve_a_look(self, new: list[torch.Tensor]) -> bool:
        """Whether to search for the optimizer of leaves not seen before.

        Inputs that need gradients are new at every step, and each search costs tens of ms: they
        get one. An optimizer of such tensors that is missed here is met when it first steps.
        """
        if any(isinstance(leaf, torch.nn.Parameter) for leaf in new):
            return True
        first, self._looked_for_inputs = not self._looked_for_inputs, True
        return first

    def _waits_for_updates_by_hand(self) -> bool:
        # a fine-tuned head leaves a backbone of loose weights that nobody ever updates
        return self._manual.steps > 0 or self._steps == 0

    def _updates_by_hand(self) -> bool:
        """Whether the leaves that no optimizer holds are weights, and not inputs."""
        return self._manual.steps > 0 or not self._attachments.counted().optimizers()

    # -- optimizers ----------------------------------------------------------------------------

    def before_scaler(self, optimizer: object) -> None:
        """A GradScaler is about to step this."""
        inner = scaler.unwrap(optimizer)
        if self._attachments.leaves_alone(inner):
            return
        with self._clock, _figures():
            self._any_scaler = True
            steady = self._steady(inner)
            self._count_grads(parameters_of(inner))
            # told here, since the scaler does not call the step of one that overflows
            self._steps += inner not in self._told_by_scaler
            self._told_by_scaler.add(inner)
            self._note_loop(inner)
            self._tell_loss(steady)

    def after_scaler(self, optimizer: object) -> None:
        """It has stepped it, or dropped the step: then its clip calls are over, too."""
        inner = scaler.unwrap(optimizer)
        with self._clock, _figures():
            if inner in self._told_by_scaler:
                self._told_by_scaler.discard(inner)
                if inner in self._attachments:
                    steps, parameters = self._steady(inner).steps, parameters_of(inner)
                    number = self._attachments.number_of(map(id, parameters))
                    with_grad = sum(p.grad is not None for p in parameters)
                    self._note_calls(max(steps - 1, 0), parameters, with_grad, number)

    def before_step(self, optimizer: torch.optim.Optimizer, closure: object = None) -> None:
        """An optimizer is about to step."""
        steady = self._attachments.handle_of(optimizer)
        if steady is None and self._attachments.leaves_alone(optimizer):
            return
        with self._clock:
            if steady is None:
                steady = self._steady(optimizer)
            if self._manual.pending is not None:
                self._manual.forget(parameters_of(optimizer))
            if self._any_scaler and optimizer in self._told_by_scaler:
                self._told_by_scaler.discard(optimizer)
                return
            self._steps += 1
            if self._grads.waiting:
                self._count_grads(parameters_of(optimizer))
            if not self._loop.rests:
                self._note_loop(optimizer)
            if not callable(closure):
                self._tell_loss(steady)
            elif not self._hears_ends:
                self._hears_ends = True
                register_optimizer_step_post_hook(eager(self._after_step))

    def engine_steps(self, parameters: Iterable[torch.Tensor], parts: bool) -> None:
        """A library is about to move these, by an optimizer of copies of theirs.

        Args:
            parameters: of the model.
            parts: each rank's optimizer has a part of the copies.
        """
        with self._clock:
            self._manual.forget(parameters)
            self._attachments.of_parts = self._attachments.of_parts or parts

    def kept_elsewhere(self, parameters: list[torch.Tensor]) -> float:
        """An optimizer that is none of torch's has stepped on these; returns that step's loss."""
        self._manual.forget(parameters)
        self._elsewhere += 1
        loss = self.losses.of_step()
        return math.nan if loss is None else float(loss)

    def clipped_elsewhere(
        self, parameters: list[torch.Tensor], names: tuple[str, ...], step: int, number: int
    ) -> StepOutcome | None:
        """Record the script's clip calls before the step of an optimizer that is not torch's.

        Args:
            parameters: what it is about to move.
            names: theirs.
            step: the step's number.
            number: that optimizer's.

        Returns:
            The figures before those calls and what they left; None where there were none.
        """
        with self._clock, _figures():
            with_grads = [p for p in parameters if p.grad is not None]
            reading = (
                self.log.reading_of(with_grads) if len(with_grads) == len(parameters) else None
            )
            calls = self.log.stepped(parameters)
            self._write_calls(calls, step, len(with_grads), number)
            if reading is None or not calls:
                return None
            grads = [grad for p in with_grads if (grad := p.grad) is not None]
            sizes = tuple(p.numel() for p in with_grads)
            return summed_up(reading, GradientBatch(grads, with_grads, names, sizes))
        return None

    def _note_loop(self, optimizer: torch.optim.Optimizer) -> None:
        self._loop.before_step(optimizer, self._attachments.counted())
        writer = self.context.writer() if self._loop.changed else None
        if writer is not None:
            writer.update_info(loop=self._loop.as_json())

    def _tell_loss(self, steady: Steady) -> None:
        loss = self.losses.of_step()
        if loss is not None:
            steady.observe_loss(loss)

    def _after_step(self, *_: object) -> None:
        """A step with a closure is over: its loss must not count for the next step."""
        self.losses.of_step()

    def _steady(self, optimizer: torch.optim.Optimizer) -> Steady:
        if optimizer in self._attachments:
            return self._attachments.steady(optimizer, self._observing)
        steady = self._attachments.steady(optimizer, self._observing)
        number = self._attachments.number_of(map(id, parameters_of(optimizer)))
        self._loop.follow(optimizer, number, self._attachments.tensor_names)
        if self.context.plan.find_nan:
            steady.find_nan(quiet=True)
            if self._finder is not None and not self._updates_by_hand():
                self._finder.end()
                self._finder = None
        self._write_facts()
        return steady

    def _observing(self, optimizer: torch.optim.Optimizer, number: int) -> ObservingClipper:
        alive = weakref.ref(optimizer)

        def stepping(step: int, batch: GradientBatch) -> None:
            optimizer = alive()
            if optimizer is not None:
                parameters = batch.params
                if batch.present is not None:  # calls on those without a gradient count too
                    parameters = parameters_of(optimizer)
                self._note_calls(step, parameters, len(batch.grads), number)

        choice = resolve("none", self.context.plan.on_nonfinite)
        quietly = self._quietly(QuietSteps(self.log), number)
        return ObservingClipper(choice.on_nonfinite, self.log.reading_of, stepping, quietly)

    def _quietly(
        self, steps: QuietSteps, number: int
    ) -> Callable[[int, list[torch.Tensor]], PassedStep | None]:
        def passes(step: int, params: list[torch.Tensor]) -> PassedStep | None:
            if self._unscaled:
                return None
            if steps.passes(params):
                return UNREAD
            clipped = steps.clipped(params)
            if clipped is None:
                return None
            reading, calls = clipped
            if calls:
                self._write_calls(calls, step, len(params), number)
            return PassedStep(reading.sealed, number_of(reading.threshold), reading.factor)

        return passes

    def _note_calls(
        self, step: int, parameters: list[torch.Tensor], with_grad: int, number: int
    ) -> None:
        calls = self.log.stepped(parameters)
        if self._unscaled:
            self._unscaled.difference_update(map(id, parameters))
        if calls:
            self._write_calls(calls, step, with_grad, number)

    def _write_calls(self, calls: list[ClipCall], step: int, of_params: int, number: int) -> None:
        writer = self.context.writer()
        for event in new_events(self._book, calls, step, of_params, number):
            if writer is not None:
                writer.write_event(SCRIPT_CLIP, event, step)

    def _write_facts(self) -> None:
        writer = self.context.writer()
        if writer is not None:
            writer.update_info(**facts(self._attachments.census, self._amp))

    # -- the script's clip calls ---------------------------------------------------------------

    def acts_on(self, parameters: Sequence[Any]) -> bool:
        """Whether a policy of ours clips these in place of the script's own call.

        Where none would, the call stays: a script must not lose its only clip.
        """
        if self.context.plan.clip is None:
            return False
        with self._clock, _figures():
            return self._manual.owns(parameters) or self._attachments.will_act_on(parameters)
        return False

    def before_clip(self, call: Call) -> ClipCall | None:
        """Read the gradients that a clip call is about to change."""
        with self._clock, _figures():
            if self._grads:
                self._count_grads([p for p in call.parameters if isinstance(p, torch.Tensor)])
            return self.log.before(call.parameters, call.limit, call.norm_type, call.kind)
        return None

    def after_clip(self, call: Call, result: object) -> None:
        """A clip call is over; ``result`` is what it returned."""
        with self._clock, _figures():
            if call.note is not None:
                passes_norm = call.kind == "given norm"
                norm = call.total_norm if passes_norm else result
                self.log.after(call.note, norm, call.exact)
                self.losses.clipped_at(call.note.norm)

    def instead_of_clip(self, parameters: Sequence[torch.Tensor]) -> None:
        """A clip call that is replaced: act here where no optimizer step follows."""
        with self._clock, _figures():
            if self._manual.owns(parameters):
                self._manual.act(parameters)

    # -- mixed precision -----------------------------------------------------------------------

    def before_unscale(self, optimizer: object) -> Unscaling | None:
        """A GradScaler is about to divide an optimizer's gradients by its scale."""
        with self._clock, _figures():
            return self.log.before_unscale(parameters_of(scaler.unwrap(optimizer)))
        return None

    def after_unscale(self, optimizer: object, unscaling: Unscaling | None) -> None:
        """It has divided them."""
        with self._clock, _figures():
            if unscaling is not None:
                self.log.after_unscale(unscaling)
            self._unscaled.update(map(id, parameters_of(scaler.unwrap(optimizer))))

    def _scale_of(self, parameters: Sequence[torch.Tensor]) -> object:
        scale = self.losses.scale
        if scale is None or not parameters or id(parameters[0]) in self._unscaled:
            return None
        return scale

    # -- where NaN comes from ------------------------------------------------------------------

    def find_nan(self) -> None:
        """Look for the first NaN or inf of every optimizer, and of a loop without one."""
        self._finder = Finder(self._manual)

    def _seek_origin(self, finder: Finder) -> None:
        """Look at a loop by hand after its backward: it moves the weights before the next."""
        leaves, counts = self._manual.waiting()
        finder.rest()
        if any(counts) or finder.lost:
            infos = self._attachments.names(leaves)
            names = [infos[id(leaf)].name for leaf in leaves]
            step = self._manual.steps + self._elsewhere
            origin = finder.check(step, np.array(counts), names, leaves, names)
            writer = self.context.writer()
            if origin is not None and writer is not None:
                data = {**origin.as_json(), "optimizer": self._manual.index}
                writer.write_event(NAN_ORIGIN, data, origin.step)
        finder.stepped()

    # -- loops without an optimizer ------------------------------------------------------------

    def _new_manual(self) -> ManualLoop:
        plan, clipper = self.context.plan, None
        if plan.clip is not None:
            choice = resolve(plan.clip, plan.on_nonfinite)
            clipper = Clipper(choice.policy, choice.on_nonfinite)
        describe = self._attachments.names
        return ManualLoop(self.log, describe, self._manual_recorder, self._manual_step, clipper)

    def _manual_recorder(self) -> OptimizerRecorder | None:
        writer = self.context.writer()
        if writer is None:
            return None
        self._manual.index = self._attachments.new_number("by hand")
        self._write_facts()
        return OptimizerRecorder(writer, {})

    def _manual_step(self, step: int, parameters: list[torch.Tensor]) -> None:
        calls = self.log.stepped(parameters)
        self.losses.of_step()
        if calls:
            self._write_calls(calls, step, len(parameters), self._manual.index)

    # -- the end -------------------------------------------------------------------------------

    @property
    def steps(self) -> int:
        """Optimizer steps seen so far."""
        return self._manual.steps + self._steps

    def abandon(self) -> None:
        """Let go of what was attached for a run file that is another process's, or closed next."""
        if self._finder is not None:
            self._finder.end()
            self._finder = None
        self._attachments.abandon()

    def finish(self) -> None:
        """Write what is left; the run file is closed next."""
        with self._clock, _figures():
            self._manual.finish()
            self._tell_of_grads()
            for call in self.log.waiting if self.steps else ():
                self._write_calls([call], self.steps, 0, self._attachments.number_of(call.ids))
            self._attachments.deliver()
        self.context.overhead += self.overhead
        if self._elsewhere and self._book.summary():
            elsewhere = self.context.writer()
            if elsewhere is not None:
                elsewhere.update_info(clip_calls=self._book.summary())
        writer = self.context.writer() if self.steps else None
        if writer is not None:
            writer.update_info(clip_calls=self._book.summary(), loop=self._loop.as_json())
            self._write_facts()

    def _tell_of_grads(self) -> None:
        """Mention what the run file lacks of loops around `torch.autograd.grad`."""
        if self._manual.unread:
            self.context.mention(
                f"{self._manual.unread} updates by hand are not recorded: several calls of "
                "torch.autograd.grad came before each, and how the script adds them up is not seen"
            )
        if self._manual.taken_from_calls and self.context.plan.clip is not None:
            self.context.mention(
                f"--clip {self.context.plan.clip} was not applied to updates by hand from "
                "torch.autograd.grad; put what it returns into .grad and step an optimizer of "
                "torch.optim"
            )


def _figures() -> np.errstate:
    """To stand around arithmetic with figures: they may be inf, and a script may have NumPy raise.

    It costs a microsecond, which what every step does without figures is spared.
    """
    return np.errstate(all="ignore")


class _Clock:
    """Lets one thread in at a time, adds its time to an observer's overhead, tells what goes wrong.

    A failure there is told once, and is none of the script's.
    """

    def __init__(self, observer: TorchObserver) -> None:
        self._observer = weakref.proxy(observer)
        self._lock = threading.RLock()
        self._entered: list[float] = []

    def __enter__(self) -> None:
        self._lock.acquire()
        self._entered.append(time.perf_counter())

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool:
        self._observer.overhead += time.perf_counter() - self._entered.pop()
        self._lock.release()
        if not isinstance(error, Exception) or isinstance(error, NonFiniteError):
            return False  # the latter is what --on-nonfinite raise asks for
        self._observer.context.trouble("part of the run was not observed", error)
        return True
