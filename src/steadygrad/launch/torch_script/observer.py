"""What is made of a PyTorch script's backward passes, clip calls and optimizer steps.

Loaded at the script's first backward or step, never before. Each optimizer is
attached to (`steadygrad.torch.attach`) when it first steps; without ``--clip`` it
is given a clipper that changes nothing.
"""

from __future__ import annotations

import math
import time
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

from steadygrad.errors import NonFiniteError
from steadygrad.launch.clip_calls import CallBook
from steadygrad.launch.torch_script.calls import event_of, place_of
from steadygrad.launch.torch_script.census import Census
from steadygrad.launch.torch_script.clips import ClipCall, ClipLog
from steadygrad.launch.torch_script.facts import facts
from steadygrad.launch.torch_script.graph import leaves_of
from steadygrad.launch.torch_script.loop_facts import LoopFacts
from steadygrad.launch.torch_script.manual import ManualLoop
from steadygrad.launch.torch_script.observed import ObservingClipper
from steadygrad.policies.choice import resolve
from steadygrad.runlog.origin import EVENT
from steadygrad.runlog.records import TensorInfo
from steadygrad.torch.gradients.batch import Batch
from steadygrad.torch.internals import scaler
from steadygrad.torch.origin.finder import Finder
from steadygrad.torch.record.losses import LossMeter
from steadygrad.torch.record.recording import Recorder
from steadygrad.torch.step import copies
from steadygrad.torch.step.attaching import attach_unheard
from steadygrad.torch.step.clipper import Clipper
from steadygrad.torch.step.handle import Steady
from steadygrad.torch.step.inner import is_stand_in

if TYPE_CHECKING:
    from steadygrad.launch.session import Session
    from steadygrad.launch.torch_script.install import Call

MOST_WALKS = 16
_NONE: Mapping[str, float] = {}


class TorchObserver:
    """Follows one process.

    Args:
        session: the run.

    Attributes:
        overhead: seconds spent here, those of attached optimizers not included.
    """

    def __init__(self, session: Session) -> None:
        self.session = session
        self.overhead = 0.0
        self._timed = _Clock(self)
        self.losses = LossMeter()
        self.log = ClipLog(lambda: self.losses.backwards, self._scale_of)
        self._book = CallBook()
        self._attached: weakref.WeakSet[torch.optim.Optimizer] = weakref.WeakSet()
        self._told: weakref.WeakSet[torch.optim.Optimizer] = weakref.WeakSet()
        self._steps = 0
        self._elsewhere = 0
        self._infos: list[dict[str, Any]] = []
        self._taken: set[str] = set()
        self._census: Census | None = None
        self._walks = 0
        self._by_hand = False
        self._seen_loose: set[int] = set()
        self._manual = self._new_manual()
        self._scale: Any = None
        self._amp = False
        self._unscaled: set[int] = set()
        self._finder: Finder | None = None
        self._hears_ends = False
        self._number_of: dict[int, int] = {}
        self._loop = LoopFacts()

    # -- backward ------------------------------------------------------------------------------

    def before_backward(self, tensors: Sequence[Any], weights: Sequence[Any] | None) -> None:
        """The script calls backward on these tensors."""
        with self._timed:
            # first what this backward ends: a step by hand, which has the losses so far
            if self._walks < MOST_WALKS or self._waits_for_updates_by_hand():
                self._look_around(tensors)
            else:
                self._by_hand = False
            self._loop.before_backward(tensors)
            self.losses.saw(tensors, weights)
            self._scale = self.losses.scale
            self._amp = self._amp or self._scale is not None

    def after_backward(self) -> None:
        """That backward is done."""
        with self._timed:
            self._loop.after_backward()
        if self._by_hand:
            with self._timed:
                self._manual.after_backward(self.losses.so_far)
                if self._finder is not None:
                    self._seek_origin(self._finder)

    def _look_around(self, tensors: Sequence[Any]) -> None:
        """Learn the forward order, and whether weights are updated by hand."""
        self._walks += 1
        if self._census is None:
            self._census = Census()
        leaves = leaves_of([t for t in tensors if isinstance(t, torch.Tensor)])
        self._census.note_order(leaves)
        loose = self._loose(leaves)
        self._by_hand = bool(loose)
        self._loop.saw_loose(loose)
        if loose or self._manual.steps:
            self._manual.before_backward(loose)
        elif self._steps and self._census.settled():
            self._walks = MOST_WALKS

    def _loose(self, leaves: Iterable[torch.Tensor]) -> list[torch.Tensor]:
        """The leaves that no optimizer holds."""
        assert self._census is not None
        owned = self._census.owned()
        loose = [leaf for leaf in leaves if id(leaf) not in owned]
        if not self._seen_loose.issuperset(map(id, loose)):
            self._census.refresh()  # their optimizer may be newer than the census
            owned = self._census.owned()
            loose = [leaf for leaf in leaves if id(leaf) not in owned]
            self._seen_loose = set(map(id, loose))
        return loose

    def _waits_for_updates_by_hand(self) -> bool:
        # a fine-tuned head leaves a backbone of loose weights that nobody ever updates
        return self._by_hand and (self._manual.steps > 0 or self._steps == 0)

    # -- optimizers ----------------------------------------------------------------------------

    def before_scaler(self, optimizer: Any) -> bool:
        """A GradScaler is about to step this; True where it was not attached yet."""
        inner = scaler.unwrap(optimizer)
        if self._is_the_scripts(inner):
            return False
        with self._timed:
            new = inner not in self._attached
            steady = self._steady(inner)
            if new:
                return inner in self._attached
            # told here, since the scaler does not call the step of one that overflows
            self._steps += inner not in self._told
            self._told.add(inner)
            self._note_loop(inner)
            self._tell_loss(steady)
        return False

    def before_step(self, optimizer: torch.optim.Optimizer, closure: Any = None) -> None:
        """An optimizer is about to step."""
        if self._is_the_scripts(optimizer):
            return
        with self._timed:
            steady = self._steady(optimizer)
            self._manual.forget(p for group in optimizer.param_groups for p in group["params"])
            if optimizer in self._told:
                self._told.discard(optimizer)
                return
            self._steps += 1
            self._note_loop(optimizer)
            if not callable(closure):
                self._tell_loss(steady)
            elif not self._hears_ends:
                self._hears_ends = True
                register_optimizer_step_post_hook(self._after_step)

    def _note_loop(self, optimizer: torch.optim.Optimizer) -> None:
        assert self._census is not None
        self._loop.before_step(optimizer, self._census)
        writer = self.session.writer() if self._loop.changed else None
        if writer is not None:
            writer.update_info(loop=self._loop.as_json())

    def kept_elsewhere(self, parameters: list[torch.Tensor]) -> float:
        """An optimizer that is none of torch's has stepped on these; returns that step's loss."""
        self._manual.forget(parameters)
        self._elsewhere += 1
        loss = self.losses.of_step()
        return math.nan if loss is None else float(loss)

    def _tell_loss(self, steady: Steady) -> None:
        loss = self.losses.of_step()
        if loss is not None:
            steady.observe_loss(loss)

    def _after_step(self, *_: Any) -> None:
        """A step is over: what its closure was worth is not the next step's loss."""
        self.losses.of_step()

    def _is_the_scripts(self, optimizer: torch.optim.Optimizer) -> bool:
        """Whether the script has attached steadygrad to this optimizer itself: left to it."""
        if optimizer in self._attached or getattr(optimizer, scaler.HANDLE, None) is None:
            return is_stand_in(optimizer) or self._is_part_of_a_step(optimizer)
        self.session.mention(
            f"the script attaches steadygrad to its {type(optimizer).__name__} itself; the steps "
            "of that optimizer are clipped and recorded by its own handle, in the run file that "
            "it names, and not here"
        )
        return True

    def _is_part_of_a_step(self, optimizer: torch.optim.Optimizer) -> bool:
        """Whether it steps inside the step of one that wraps it: that is one step, not two."""
        handles = (getattr(each, scaler.HANDLE, None) for each in self._attached)
        return any(handle is not None and handle.contains_step_of(optimizer) for handle in handles)

    def _steady(self, optimizer: torch.optim.Optimizer) -> Steady:
        if optimizer in self._attached:
            held: Steady = getattr(optimizer, scaler.HANDLE)
            return held
        return self._attach(optimizer)

    def _attach(self, optimizer: torch.optim.Optimizer) -> Steady:
        census = self._census = self._census or Census()
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        if not all(census.knows(p) for p in parameters):
            census.refresh()
        index = self._number(type(optimizer).__name__, _settings(optimizer))
        self._number_of.update((id(p), index) for p in parameters)
        self._loop.follow(optimizer, index)
        infos = census.names(parameters, self._taken)
        steady = attach_unheard(
            optimizer,
            clip=self.session.plan.clip or "none",
            on_nonfinite=self.session.plan.on_nonfinite,
            run=self.session.writer(),
            names=infos,
            optimizer_index=index,
        )
        steady.survive(lambda error: self.session.trouble("a step was not observed", error))
        copies.unmark_copies(optimizer)  # the script's own copies and pickles stay as they were
        if self.session.plan.clip is None:
            steady.act_through(self._observing(steady, optimizer, index))
        if self.session.plan.find_nan:
            steady.find_nan(quiet=True)
            if self._finder is not None and not self._by_hand:
                self._finder.end()
                self._finder = None
        self._attached.add(optimizer)
        return steady

    def _observing(
        self, steady: Steady, optimizer: torch.optim.Optimizer, index: int
    ) -> ObservingClipper:
        held = weakref.ref(optimizer)

        def stepping(step: int, batch: Batch) -> None:
            optimizer = held()
            if optimizer is not None:
                parameters = batch.params
                if batch.present is not None:  # calls on those without a gradient count too
                    parameters = [p for group in optimizer.param_groups for p in group["params"]]
                self._note_calls(step, parameters, len(batch.grads), index)

        on_nonfinite = resolve("none", self.session.plan.on_nonfinite).on_nonfinite
        return ObservingClipper(on_nonfinite, self.log.reading_of, stepping)

    def _note_calls(
        self, step: int, parameters: list[torch.Tensor], with_grad: int, index: int
    ) -> None:
        calls = self.log.stepped(parameters)
        if self._unscaled:
            self._unscaled.difference_update(map(id, parameters))
        if calls:
            self._write_calls(calls, step, with_grad, index)

    def _write_calls(self, calls: list[ClipCall], step: int, of_params: int, index: int) -> None:
        writer = self.session.writer()
        for call in calls:
            place = place_of(call, of_params)
            if self._book.enter(place, step, index, call.max_norm) and writer is not None:
                event = event_of(call, step, of_params, index)
                writer.write_event("script_clip", event, step)

    def _number(self, kind: str, settings: Mapping[str, float] = _NONE) -> int:
        self._infos.append({"class": kind, "index": len(self._infos), **settings})
        writer = self.session.writer()
        if writer is not None:
            writer.update_info(optimizers=self._infos, **self._facts())
        return len(self._infos) - 1

    def _facts(self) -> dict[str, Any]:
        return facts(self._census, self._amp)

    # -- the script's clip calls ---------------------------------------------------------------

    @property
    def replaces(self) -> bool:
        """Whether the script's clip calls are replaced by a policy."""
        return self.session.plan.clip is not None

    def before_clip(self, call: Call) -> ClipCall | None:
        """Read the gradients that a clip call is about to change."""
        with self._timed:
            by_value = call.kind == "value"
            return self.log.before(call.parameters, call.limit, call.norm_type, by_value)
        return None

    def after_clip(self, call: Call, result: Any) -> None:
        """A clip call is over; ``result`` is what it returned."""
        with self._timed:
            self.log.after(call.note, call.total_norm if call.kind == "given norm" else result)

    def instead_of_clip(self, parameters: Sequence[torch.Tensor]) -> None:
        """A clip call that is replaced: act here where no optimizer step follows."""
        with self._timed:
            if self._manual.owns(parameters):
                self._manual.act(parameters)

    # -- mixed precision -----------------------------------------------------------------------

    def unscale(self, optimizer: Any, unscale_: Callable[[], Any]) -> Any:
        """A GradScaler divides an optimizer's gradients by its scale."""
        groups = scaler.unwrap(optimizer).param_groups
        parameters = [p for group in groups for p in group["params"]]
        result = self.log.rescaled(parameters, unscale_)
        self._unscaled.update(id(p) for p in parameters)
        return result

    def _scale_of(self, parameters: Sequence[torch.Tensor]) -> Any:
        if self._scale is None or not parameters or id(parameters[0]) in self._unscaled:
            return None
        return self._scale

    # -- where NaN comes from ------------------------------------------------------------------

    def find_nan(self) -> None:
        """Look for the first NaN or inf of every optimizer, and of a loop without one."""
        self._finder = Finder(self._manual)

    def _seek_origin(self, finder: Finder) -> None:
        """Look at a loop by hand after its backward: it moves the weights before the next."""
        leaves, counts = self._manual.waiting()
        finder.rest()
        if any(counts) or finder.lost:
            infos = self._names(leaves)
            names = [infos[id(leaf)].name for leaf in leaves]
            step = self._manual.steps + self._elsewhere
            found = finder.check(step, np.array(counts), names, leaves, names)
            writer = self.session.writer()
            if found is not None and writer is not None:
                data = {**found.as_json(), "optimizer": self._manual.index}
                writer.write_event(EVENT, data, found.step)
        finder.stepped()

    # -- loops without an optimizer ------------------------------------------------------------

    def _new_manual(self) -> ManualLoop:
        plan = self.session.plan
        clipper = None
        if plan.clip is not None:
            choice = resolve(plan.clip, plan.on_nonfinite)
            clipper = Clipper(choice.policy, choice.on_nonfinite)
        return ManualLoop(self.log, self._names, self._manual_recorder, self._manual_step, clipper)

    def _names(self, parameters: list[torch.Tensor]) -> dict[int, TensorInfo]:
        assert self._census is not None
        return self._census.names(parameters, self._taken)

    def _manual_recorder(self) -> Recorder | None:
        writer = self.session.writer()
        if writer is None:
            return None
        self._manual.index = self._number("by hand")
        return Recorder(writer, {})

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
        """In a forked child: let go of what was attached for the parent's run file."""
        for optimizer in list(self._attached):
            getattr(optimizer, scaler.HANDLE).detach()

    def finish(self) -> None:
        """Write what is left; the run file is closed next."""
        with self._timed:
            self._manual.finish()
            for call in self.log.waiting if self.steps else ():
                index = next((self._number_of[i] for i in call.ids if i in self._number_of), 0)
                self._write_calls([call], self.steps, 0, index)
        self.session.overhead += self.overhead
        writer = self.session.writer() if self.steps else None
        if writer is not None:
            calls = self._book.summary()
            writer.update_info(clip_calls=calls, loop=self._loop.as_json(), **self._facts())


def _settings(optimizer: torch.optim.Optimizer) -> dict[str, float]:
    """The numbers of its first group that explain a step: the ``eps`` that float16 may not hold."""
    group = optimizer.param_groups[0]
    return {key: float(group[key]) for key in ("eps",) if isinstance(group.get(key), float)}


class _Clock:
    """Adds the time spent inside to an observer's overhead; what goes wrong there is told once."""

    def __init__(self, observer: TorchObserver) -> None:
        self._observer = weakref.proxy(observer)
        self._started: list[float] = []

    def __enter__(self) -> None:
        self._started.append(time.perf_counter())

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        self._observer.overhead += time.perf_counter() - self._started.pop()
        if not isinstance(error, Exception) or isinstance(error, NonFiniteError):
            return False  # the latter is what --on-nonfinite raise asks for
        self._observer.session.trouble("part of the run was not observed", error)
        return True
