"""The script's own clip calls on their way to the run file."""

from __future__ import annotations

import functools
import re
import weakref
from collections.abc import Callable

import torch

from steadygrad.launch.contracts import RunContext
from steadygrad.launch.torch_script.hand_changes import HandWatch
from steadygrad.policies.choice import resolve
from steadygrad.runlog.clip_calls import CallBook, Count
from steadygrad.torch.clip_calls.arithmetic import HandChanges
from steadygrad.torch.clip_calls.calls import new_events
from steadygrad.torch.clip_calls.clips import ClipCall, ClipLog, QuietSteps
from steadygrad.torch.gradients.batch import GradientBatch
from steadygrad.torch.gradients.parameters import parameters_of
from steadygrad.torch.internals.eager import eager
from steadygrad.torch.internals.scaler import HANDLE
from steadygrad.torch.step.observing import (
    ObservingClipper,
    Steady,
    StepOutcome,
    UncopiedHook,
    summed_up,
)
from steadygrad.vocabulary import SCRIPT_CLIP


class ScriptClips:
    """Writes down the clip calls before each step, of whatever optimizer or loop.

    Args:
        context: the run.
        log: what those calls found and did.
        by_hand: finds clips that are no calls.
    """

    def __init__(self, context: RunContext, log: ClipLog, by_hand: HandWatch) -> None:
        self._context, self._log, self._by_hand = context, log, by_hand
        self._book = CallBook()
        self._limits: dict[str, HandChanges] = {}

    def stepped(
        self, step: int, parameters: list[torch.Tensor], of_params: int, number: int
    ) -> None:
        """A step is taken or dropped: the calls before it are over.

        Args:
            step: its number.
            parameters: what it moves.
            of_params: how many of them have a gradient.
            number: the optimizer's, or that of a loop by hand.
        """
        calls = self._log.stepped(parameters)
        if calls:
            self._write(calls, step, of_params, number)

    def stepped_elsewhere(
        self, parameters: list[torch.Tensor], names: tuple[str, ...], step: int, number: int
    ) -> StepOutcome | None:
        """An optimizer that is not torch's is about to step.

        Args:
            parameters: what it is about to move.
            names: theirs.
            step: the step's number.
            number: that optimizer's.

        Returns:
            The figures before those calls and what they left; None where there were none.
        """
        with_grads = [p for p in parameters if p.grad is not None]
        whole = len(with_grads) == len(parameters)
        reading = self._log.reading_of(with_grads) if whole else None
        calls = self._log.stepped(parameters)
        self._write(calls, step, len(with_grads), number)
        if reading is None or not calls:
            return None
        grads = [grad for p in with_grads if (grad := p.grad) is not None]
        sizes = tuple(p.numel() for p in with_grads)
        return summed_up(reading, GradientBatch(grads, with_grads, names, sizes))

    def clipper(self, optimizer: torch.optim.Optimizer, number: int) -> ObservingClipper:
        """What clips nothing and tells here of each step of an optimizer.

        Args:
            optimizer: held weakly.
            number: its number within the run.
        """
        alive = weakref.ref(optimizer)

        def stepping(step: int, batch: GradientBatch) -> None:
            optimizer = alive()
            if optimizer is not None:
                parameters = batch.params
                if batch.present is not None:  # calls on those without a gradient count too
                    parameters = parameters_of(optimizer)
                self.stepped(step, parameters, len(batch.grads), number)

        choice = resolve("none", self._context.plan.on_nonfinite)
        repeats = functools.partial(self._book.repeats, optimizer=number)
        steps = QuietSteps(self._log, functools.partial(self._write, number=number), repeats)
        clipper = ObservingClipper(
            choice.on_nonfinite, self._log.reading_of, stepping, steps, self._by_hand.of(optimizer)
        )
        if not type(optimizer).step.__module__.startswith("torch."):
            for name in limits_of(optimizer):
                self._limits[f"{type(optimizer).__name__} has {name}"] = self._by_hand.of(optimizer)
            self._follow_inside(optimizer, number, clipper)
        return clipper

    def _follow_inside(
        self, optimizer: torch.optim.Optimizer, number: int, clipper: ObservingClipper
    ) -> None:
        """Hear of clip calls inside an optimizer's `step`, where the script has written that.

        Gradients are read before a step, so that such calls seem to stand behind it.
        """
        clipper.look_inside()
        followed: Steady = getattr(optimizer, HANDLE)
        steady = weakref.ref(followed)

        def after(optimizer: torch.optim.Optimizer, *_: object) -> None:
            handle: Steady | None = getattr(optimizer, HANDLE, None)
            if handle is None or handle is not steady() or handle.is_under_way:
                return
            if self._log.waiting:
                what = "a clip call inside a step was not seen"
                self._context.guarded(what, self._stepped_inside, optimizer, number, clipper)

        optimizer.register_step_post_hook(UncopiedHook(eager(after)))

    def _stepped_inside(
        self, optimizer: torch.optim.Optimizer, number: int, clipper: ObservingClipper
    ) -> None:
        steady: Steady = getattr(optimizer, HANDLE)
        parameters = parameters_of(optimizer)
        own = set(map(id, parameters))
        inside = [c for c in self._log.waiting if c.after_step and c.concerns(own)]
        for call in inside:
            call.after_step, call.backward_since_step = False, 1
            if not getattr(optimizer, "_step_supports_amp_scaling", False):
                call.scale = None  # a GradScaler has divided it out before it called the step
        if inside:
            with_grad = sum(p.grad is not None for p in parameters)
            step = max(steady.steps - 1, 0)
            self.stepped(step, parameters, with_grad, number)
            if not clipper.was_inside:
                clipper.look_inside()  # from the next step on
                self._context.mention(
                    f"the script's {type(optimizer).__name__} clips inside its own step(): step "
                    f"{step} is told as not clipped, with the norm before"
                )

    def finish(self, step: int, owner_of: Callable[[frozenset[int]], int]) -> None:
        """The script is over: calls that no step has followed.

        Args:
            step: how many there were.
            owner_of: gives the number of the optimizer that holds parameters of some ids.
        """
        for call in self._log.waiting if step else ():
            self._write([call], step, 0, owner_of(call.ids))
        self._by_hand.finish()
        for name, changes in self._limits.items():
            if step and not changes.has_clipped and not self.summary():
                self._context.mention(
                    f"the script's {name}, and no clip of it was seen: what step() clips in copies "
                    "of gradients is told as not clipped, with the norm before. Where it shall be "
                    "seen, type torch.nn.utils.clip_grad_norm_ before step()"
                )

    def summary(self) -> list[Count]:
        """All calls so far, counted, for the run file."""
        return self._book.summary()

    def _write(self, calls: list[ClipCall], step: int, of_params: int, number: int) -> None:
        writer = self._context.writer()
        for event in new_events(self._book, calls, step, of_params, number):
            if writer is not None:
                writer.write_event(SCRIPT_CLIP, event, step)


def limits_of(optimizer: torch.optim.Optimizer) -> list[str]:
    """Settings of an optimizer that by their names are limits of a clip, as a script sets them.

    Example:
        >>> weight = torch.nn.Parameter(torch.ones(1))
        >>> limits_of(torch.optim.SGD([{"params": [weight], "max_grad_norm": 1.0}], lr=0.1))
        ['max_grad_norm=1']
    """
    group = optimizer.param_groups[0] if optimizer.param_groups else {}
    return [
        f"{name}={value:g}"
        for name, value in group.items()
        if re.search(r"clip(?!.*thresh)|max_?(grad)?.*norm", name)
        and type(value) in (int, float)
        and 0 < value < float("inf")
    ]
