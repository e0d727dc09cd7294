"""What is made of a PyTorch script's backward passes, clip calls and optimizer steps.

Loaded at the script's first backward or step, never before. Each optimizer is
attached to (`steadygrad.torch.attach`) when it first steps; without ``--clip`` it
is given a clipper that changes nothing. A script may train in several threads: one at a time is
in here.
"""

from __future__ import annotations

import math
import time
import weakref
from collections.abc import Iterable, Sequence
from typing import Any

import torch

from steadygrad.kernels.native import Same, Stamped
from steadygrad.launch.contracts import RunContext
from steadygrad.launch.torch_script.attachments import Attachments
from steadygrad.launch.torch_script.by_hand import MOST_WALKS, LoopByHand
from steadygrad.launch.torch_script.entry import Entry, figures
from steadygrad.launch.torch_script.grad_calls import GradCalls, weights_of
from steadygrad.launch.torch_script.hand_changes import HandWatch
from steadygrad.launch.torch_script.loop_facts import LoopWatch
from steadygrad.launch.torch_script.script_clips import ScriptClips
from steadygrad.launch.torch_script.seen import SeenScript
from steadygrad.torch.clip_calls.clipcall import Call
from steadygrad.torch.clip_calls.clips import ClipCall, ClipLog, Unscaling
from steadygrad.torch.clip_calls.readings import GradientReading
from steadygrad.torch.clip_calls.usual import Pattern, UsualCalls, UsualVisit
from steadygrad.torch.gradients.parameters import parameters_of
from steadygrad.torch.internals import scaler, sites
from steadygrad.torch.internals.inlay import Arguments
from steadygrad.torch.internals.quiet import CallTerms, ClipTerms
from steadygrad.torch.record.losses import LossMeter
from steadygrad.torch.step.observing import Steady, StepArguments, StepOutcome


class TorchObserver(Stamped):
    """Follows one process.

    Args:
        context: the run.

    Attributes:
        losses: of the thread that asks.
        log: the script's clip calls.
        backwards: backward passes seen so far.
        has_stepped: whether an optimizer has.
    """

    def __init__(self, context: RunContext) -> None:
        self._entry = Entry(context)
        self.losses = losses = LossMeter()
        self.log = ClipLog(losses)
        # where a policy may act in a call's place, each is asked about
        self._usual = UsualCalls(self.log) if context.plan.clip is None else None
        self._attachments = Attachments(context)
        self._loop = LoopWatch()
        self._hands = HandWatch(context)
        clips = ScriptClips(context, self.log, self._hands)
        self._seen = SeenScript(context, self._attachments, losses, self._loop, clips)
        self._by_hand = LoopByHand(self._seen, self.log)
        self._grads = GradCalls()
        self._any_scaler = False
        self._told_by_scaler: weakref.WeakSet[torch.optim.Optimizer] = weakref.WeakSet()
        self.backwards = 0
        self.has_stepped = False

    # -- backward ------------------------------------------------------------------------------

    def before_backward(self, tensors: Sequence[Any], weights: Sequence[Any] | None) -> bool:
        """The script calls backward on these tensors.

        Returns:
            Whether `after_backward` has something to do.
        """
        entry, by_hand, loop = self._entry, self._by_hand, self._loop
        entry.lock.acquire()
        began = time.perf_counter()
        try:
            self.backwards += 1
            if not self._hands.rests:
                self._hands.before_backward()
            # first what this backward ends: a step by hand, which has the losses so far
            if by_hand.walks < MOST_WALKS or by_hand.active:
                by_hand.before_backward(tensors)
            if not loop.rests:
                loop.before_backward(tensors, self._attachments.census)
            losses = self.losses
            losses.saw(tensors, weights)
            if losses.scale is not None:
                self._seen.amp = True
        except Exception as error:
            if not entry.failed(error):
                raise
        finally:
            entry.seconds += time.perf_counter() - began
            entry.lock.release()
        return by_hand.active or not loop.rests or not self._hands.rests

    def after_backward(self) -> None:
        """That backward is done."""
        with self._entry:
            self._loop.after_backward()
            self._by_hand.after_backward()
            if not self._hands.rests:
                self._hands.after_backward(self._optimizers(), self.losses.scale)

    def _optimizers(self) -> Iterable[torch.optim.Optimizer]:
        """Those that step, or may."""
        return (
            self._attachments
            if self._hands.has_rested
            else self._attachments.counted().optimizers()
        )

    def after_grad(self, outputs: object, inputs: object, weights: object, results: object) -> None:
        """The script has called `torch.autograd.grad`."""
        with self._entry, figures():
            pairs = weights_of(inputs, results)
            if not all(isinstance(leaf, torch.nn.Parameter) for leaf, _ in pairs):
                # inputs of a PINN; weights only where no optimizer holds any
                pairs = [] if self._has_optimizers() else pairs
            if not pairs:
                return
            loose = set(map(id, self._by_hand.loose.of([leaf for leaf, _ in pairs])))
            loss = self.losses.heard(
                sites.listed(outputs), None if weights is None else sites.listed(weights)
            )
            own = [pair for pair in pairs if id(pair[0]) not in loose]
            if own:
                self._grads.saw(own, loss)
            elif self._seen.steps == 0 or self._by_hand.loop.steps:
                self.backwards += self._by_hand.differentiated(pairs, loss.loss)

    def _has_optimizers(self) -> bool:
        seen = self._seen
        return bool(seen.steps or seen.steps_elsewhere or self._attachments.counted().optimizers())

    def _count_grads(self, parameters: Sequence[torch.Tensor]) -> None:
        """What `torch.autograd.grad` returned is these parameters' gradient: backward passes."""
        if not self._grads:
            return
        calls = self._grads.taken(parameters, self.log.alone(parameters))
        self._hands.forget()
        for call in calls:
            self.backwards += 1
            self._loop.before_backward((), self._attachments.census)
            self._loop.after_backward()
            if len(calls) == 1:
                self.losses.take(call.loss)
            else:  # the script alone knows how it adds them up
                self.losses.lost(call.loss.scale)

    # -- optimizers ----------------------------------------------------------------------------

    def before_scaler(self, optimizer: object) -> None:
        """A GradScaler is about to step this."""
        inner = scaler.unwrap(optimizer)
        if self._attachments.leaves_alone(inner):
            return
        with self._entry, figures():
            self._any_scaler = True
            self._steady(inner)
            self._count_grads(parameters_of(inner))
            # told here, since the scaler does not call the step of one that overflows
            self._seen.steps += inner not in self._told_by_scaler
            self._told_by_scaler.add(inner)
            self._note_loop(inner)

    def after_scaler(self, optimizer: object) -> None:
        """It has stepped it, or dropped the step: then its clip calls are over, too."""
        inner = scaler.unwrap(optimizer)
        with self._entry, figures():
            if inner in self._told_by_scaler:
                self._told_by_scaler.discard(inner)
                if inner in self._attachments:
                    steps, parameters = self._steady(inner).steps, parameters_of(inner)
                    number = self._attachments.number_of(map(id, parameters))
                    with_grad = sum(p.grad is not None for p in parameters)
                    step = max(steps - 1, 0)
                    self._seen.clips.stepped(step, parameters, with_grad, number)

    def before_step(
        self, optimizer: torch.optim.Optimizer, args: tuple[object, ...], kwargs: dict[str, object]
    ) -> StepArguments | None:
        """An optimizer is about to step.

        Returns:
            What its step is to be called with; None for the same.
        """
        steady = self._attachments.handle_of(optimizer)
        if steady is None and self._attachments.leaves_alone(optimizer):
            return None
        entry = self._entry
        entry.lock.acquire()
        began = time.perf_counter()
        try:
            outer = self._attachments.wrapper_of(optimizer) if steady is None else None
            if steady is None:
                steady = self._steady(optimizer if outer is None else outer)
            if self._by_hand.loop.pending is not None:
                self._by_hand.forget(parameters_of(optimizer))
            if self._any_scaler and optimizer in self._told_by_scaler:
                self._told_by_scaler.discard(optimizer)
                return None
            self._seen.steps += 1
            self.has_stepped = True
            if self._grads.waiting:
                self._count_grads(parameters_of(optimizer))
            if not self._loop.rests:
                self._note_loop(optimizer if outer is None else outer)
            if outer is not None:
                return self._begin_inside(outer, steady, optimizer, args, kwargs)
        except Exception as error:
            if not entry.failed(error):
                raise
        finally:
            entry.seconds += time.perf_counter() - began
            entry.lock.release()
        return None

    def quiet_passes(self) -> Same | None:
        """What stays so as long as `before_backward` only hears a loss; None where it does more."""
        loop, by_hand, hands = self._loop, self._by_hand, self._hands
        if not (loop.rests and hands.rests) or by_hand.active or by_hand.walks < MOST_WALKS:
            return None
        return ((loop, "rests", True), (by_hand, "active", False), (hands, "rests", True))

    def quiet_steps(self) -> CallTerms | None:
        """The terms on which `before_step` only counts a step."""
        loop, by_hand, quiet = self._loop, self._by_hand.loop, self._attachments.quiet()
        unheard = by_hand.pending is None and not (self._any_scaler or self._grads.waiting)
        if quiet is None or not (loop.rests and unheard and self.has_stepped):
            return None
        same = ((loop, "rests", True), (by_hand, "pending", None), (self, "_any_scaler", False))
        return quiet._replace(
            same=(*quiet.same, *same),
            empty=((self._grads, "waiting"),),
            owner=self._seen,
            counted="steps",
        )

    def _begin_inside(
        self,
        outer: torch.optim.Optimizer,
        steady: Steady,
        optimizer: torch.optim.Optimizer,
        args: tuple[object, ...],
        kwargs: dict[str, object],
    ) -> StepArguments | None:
        """A wrapper is met while its first step is under way."""
        begun = steady.begin_inside(optimizer, args, kwargs)
        if begun is not None and begun[0][0] is not optimizer:
            name, inner = type(outer).__name__, type(optimizer).__name__
            self._seen.context.mention(
                f"the first step of the script's {name} was skipped in the {inner} inside it alone"
            )
        return begun

    def engine_steps(self, parameters: Iterable[torch.Tensor], parts: bool) -> None:
        """A library is about to move these, by an optimizer of copies of theirs.

        Args:
            parameters: of the model.
            parts: each rank's optimizer has a part of the copies.
        """
        with self._entry:
            self._by_hand.forget(parameters)
            self._attachments.of_parts = self._attachments.of_parts or parts

    def kept_elsewhere(self, parameters: list[torch.Tensor]) -> float:
        """An optimizer that is none of torch's has stepped on these; returns that step's loss."""
        self._by_hand.leave_to_others(parameters)
        self._seen.steps_elsewhere += 1
        loss = self.losses.of_step()
        return math.nan if loss is None else float(loss)

    def clipped_elsewhere(
        self, parameters: list[torch.Tensor], names: tuple[str, ...], step: int, number: int
    ) -> StepOutcome | None:
        """`ScriptClips.stepped_elsewhere`, in one thread at a time; None where that fails, too."""
        with self._entry, figures():
            return self._seen.clips.stepped_elsewhere(parameters, names, step, number)
        return None

    def _note_loop(self, optimizer: torch.optim.Optimizer) -> None:
        self._loop.before_step(optimizer, self._attachments.counted())
        self._seen.write_loop()

    def _steady(self, optimizer: torch.optim.Optimizer) -> Steady:
        attached, clipper = optimizer in self._attachments, self._seen.clips.clipper
        steady = self._attachments.steady(optimizer, clipper)
        if not attached:
            self._follow(optimizer, steady)
        return steady

    def _follow(self, optimizer: torch.optim.Optimizer, steady: Steady) -> None:
        steady.hear_from(self.losses)
        number = self._attachments.number_of(map(id, parameters_of(optimizer)))
        self._loop.follow(optimizer, number, self._attachments.tensor_names)
        if self._seen.context.plan.find_nan:
            steady.find_nan(quiet=True)
            self._by_hand.leave_nan()
        self._seen.write_facts()

    # -- the script's clip calls ---------------------------------------------------------------

    def acts_on(self, parameters: Sequence[Any]) -> bool:
        """Whether a policy of ours clips these in place of the script's own call.

        Where none would, the call stays: a script must not lose its only clip.
        """
        if self._seen.context.plan.clip is None:
            return False
        with self._entry, figures():
            return self._by_hand.loop.owns(parameters) or self._attachments.will_act_on(parameters)
        return False

    def clips_as_before(
        self, exact: bool, parameters: list[Any], arguments: Arguments
    ) -> UsualVisit | None:
        """`before_clip` of a call that is like the one before; None, and nothing done, for others.

        Args:
            exact: as `Call` has it.
            parameters: likewise.
            arguments: likewise.
        """
        if self._usual is None or self._grads.waiting:
            return None
        return self._entry.inside(
            self._usual.begin, exact, parameters, arguments, self._has_clipped
        )

    def quiet_clips(self) -> ClipTerms | None:
        """The terms on which C does what `clips_as_before` does."""
        if self._usual is None:
            return None
        terms = self._usual.terms(self._entry, self._has_clipped)
        if terms is None:
            return None
        return terms._replace(empty=(*terms.empty, (self._grads, "waiting")))

    def _has_clipped(
        self,
        pattern: Pattern,
        reading: GradientReading,
        grads: list[torch.Tensor],
        result: object,
    ) -> None:
        assert self._usual is not None
        norm = self._entry.inside(self._usual.end, pattern, reading, grads, result)
        if norm is not None:
            self.losses.clipped_at(norm)

    def before_clip(self, call: Call) -> ClipCall | None:
        """Read the gradients that a clip call is about to change."""
        with self._entry, figures():
            if self._grads:
                self._count_grads([p for p in call.parameters if isinstance(p, torch.Tensor)])
            return self.log.before(call.parameters, call.limit, call.norm_type, call.kind)
        return None

    def after_clip(self, call: Call, result: object) -> None:
        """A clip call is over; ``result`` is what it returned."""
        with self._entry, figures():
            if call.note is not None:
                passes_norm = call.kind == "given norm"
                norm = call.total_norm if passes_norm else result
                self.log.after(call.note, norm, call.exact)
                self.losses.clipped_at(call.note.norm)
                if self._usual is not None:
                    self._usual.learn(call)

    def instead_of_clip(self, parameters: Sequence[torch.Tensor]) -> None:
        """A clip call that is replaced: act here where no optimizer step follows."""
        with self._entry, figures():
            if self._by_hand.loop.owns(parameters):
                self._by_hand.loop.act(parameters)

    # -- mixed precision -----------------------------------------------------------------------

    def before_unscale(self, parameters: Sequence[torch.Tensor]) -> Unscaling | None:
        """A GradScaler is about to divide the gradients of these by its scale."""
        with self._entry, figures():
            return self.log.before_unscale(parameters)
        return None

    def after_unscale(self, unscaling: Unscaling) -> None:
        """It has divided them."""
        with self._entry, figures():
            self.log.after_unscale(unscaling)

    # -- the end -------------------------------------------------------------------------------

    @property
    def steps(self) -> int:
        """Optimizer steps seen so far."""
        return self._by_hand.loop.steps + self._seen.steps

    def find_nan(self) -> None:
        """Look for the first NaN or inf of every optimizer, and of a loop without one."""
        self._by_hand.find_nan()

    def abandon(self) -> None:
        """Let go of what was attached for a run file that is another process's, or closed next."""
        self._by_hand.abandon()
        self._attachments.abandon()

    def finish(self) -> None:
        """Write what is left; the run file is closed next."""
        seen = self._seen
        with self._entry, figures():
            self._by_hand.finish()
            seen.clips.finish(self.steps, self._attachments.number_of)
            self._attachments.deliver()
        seen.context.overhead += self._entry.seconds
        clip_calls = seen.clips.summary()
        writer = seen.context.writer() if self.steps or clip_calls else None
        if writer is None:
            return
        seen.context.optimizers.count_clips(clip_calls)
        if self.steps:
            writer.update_info(loop=self._loop.as_json())
            seen.write_facts()
