"""Whether a script updates weights by hand, and what is recorded of it then.

One thread's loop is followed: to read a gradient that another one accumulates is to crash.
`ManualLoop` tells its steps apart; where its NaN come from is looked for here.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence

import numpy as np
import torch

from steadygrad.kernels.native import Stamped
from steadygrad.launch.torch_script.entry import figures
from steadygrad.launch.torch_script.grad_calls import Pairs
from steadygrad.launch.torch_script.loose import LooseLeaves
from steadygrad.launch.torch_script.manual import ManualLoop
from steadygrad.launch.torch_script.seen import SeenScript
from steadygrad.policies.choice import resolve
from steadygrad.torch.clip_calls.clips import ClipLog
from steadygrad.torch.origin.finder import Finder
from steadygrad.torch.record.recording import OptimizerRecorder
from steadygrad.torch.step.observing import Clipper
from steadygrad.vocabulary import NAN_ORIGIN

MOST_WALKS = 16
"""Backward passes whose graphs are walked for weights that no optimizer holds."""


class LoopByHand(Stamped):
    """Follows the loop that updates weights without an optimizer, where the script has one.

    Args:
        seen: the script.
        log: its clip calls.

    Attributes:
        loop: its steps.
        walks: how many graphs were walked.
        active: the last backward reached weights that it may move.
        loose: finds weights that no optimizer holds.
    """

    def __init__(self, seen: SeenScript, log: ClipLog) -> None:
        self._seen = seen
        self.loop = self._new_loop(log)
        self.loose = LooseLeaves(seen.attachments)
        self.walks = 0
        self.active = False
        self._thread = 0
        self._finder: Finder | None = None

    def _new_loop(self, log: ClipLog) -> ManualLoop:
        plan, clipper = self._seen.context.plan, None
        if plan.clip is not None:
            choice = resolve(plan.clip, plan.on_nonfinite)
            clipper = Clipper(choice.policy, choice.on_nonfinite)
        describe = self._seen.attachments.names
        loop = ManualLoop(log, describe, self._recorder, self._stepped, clipper)
        loop.holds = clipper is None and "keras" in self._seen.context.frameworks
        return loop

    def before_backward(self, tensors: Sequence[object]) -> None:
        """A backward begins; to be called while `walks` is under `MOST_WALKS`, or `active`.

        It ends a step by hand, and tells whether such a loop may be there.
        """
        if self.walks < MOST_WALKS or self._waits():
            with figures():
                self._walk(tensors)
        elif self._is_this_thread and self.active:
            self.active = False
            self.loop.rest()

    @property
    def _is_this_thread(self) -> bool:
        return self._thread == threading.get_ident()

    def _waits(self) -> bool:
        # a fine-tuned head leaves a backbone of loose weights that nobody ever updates
        return self.loop.steps > 0 or self._seen.steps == 0

    def _walk(self, tensors: Sequence[object]) -> None:
        self.walks += 1
        self.loose.by_hand = self.loop.steps > 0
        loose = self.loose.under(tensors)
        self._seen.loop.saw_loose(loose)
        self._thread = self._thread or (threading.get_ident() if loose else 0)
        if self._thread not in (0, threading.get_ident()):
            return
        self.active = bool(loose)
        if loose or self.loop.steps:
            self.loop.before_backward(loose)
        elif self._seen.steps and not self.loose.any_seen and self._is_settled():
            self.walks = MOST_WALKS
        if not self.active and self.walks >= MOST_WALKS and not self._waits():
            self.loop.rest()

    def _is_settled(self) -> bool:
        return self._seen.attachments.counted().settled()

    def after_backward(self) -> None:
        """That backward is done."""
        if not (self.active and self._is_this_thread):
            return
        with figures():
            self.loop.after_backward(self._seen.losses.so_far)
            if self._finder is not None and self._moves_loose_weights():
                self._seek_origin(self._finder)

    def differentiated(self, pairs: Pairs, loss: object) -> bool:
        """`torch.autograd.grad` was called for weights that no optimizer holds.

        Args:
            pairs: they, and what it returned for each.
            loss: what was differentiated.

        Returns:
            Whether this is the thread that is followed.
        """
        self._thread = self._thread or threading.get_ident()
        if not self._is_this_thread:
            return False
        leaves, grads = [leaf for leaf, _ in pairs], [gradient for _, gradient in pairs]
        self.loop.differentiated(leaves, grads, loss)
        return True

    def forget(self, parameters: Iterable[torch.Tensor]) -> None:
        """An optimizer steps on these: that was no update by hand."""
        self.loop.forget(parameters)

    def leave_to_others(self, parameters: Sequence[torch.Tensor]) -> None:
        """An optimizer that is not torch's steps on these, now and from here on."""
        self.loop.leave_to_others(parameters)

    def _moves_loose_weights(self) -> bool:
        """Whether the leaves that no optimizer holds are weights, and not inputs."""
        return self.loop.steps > 0 or not self._seen.attachments.counted().optimizers()

    # -- where NaN comes from ------------------------------------------------------------------

    def find_nan(self) -> None:
        """Look for the first NaN or inf of such a loop."""
        self._finder = Finder(self.loop)

    def leave_nan(self) -> None:
        """An optimizer looks for its own: look no more where there is no loop by hand."""
        if self._finder is not None and not self._moves_loose_weights():
            self.abandon()

    def abandon(self) -> None:
        """Look no more."""
        if self._finder is not None:
            self._finder.end()
            self._finder = None

    def _seek_origin(self, finder: Finder) -> None:
        """Look at the loop after its backward: it moves the weights before the next."""
        leaves, counts = self.loop.waiting()
        finder.rest()
        if any(counts) or finder.lost:
            infos = self._seen.attachments.names(leaves)
            names = [infos[id(leaf)].name for leaf in leaves]
            step = self.loop.steps + self._seen.steps_elsewhere
            origin = finder.check(step, np.array(counts), names, leaves, names)
            writer = self._seen.context.writer()
            if origin is not None and writer is not None:
                data = {**origin.as_json(), "optimizer": self.loop.index}
                writer.write_event(NAN_ORIGIN, data, origin.step)
        finder.stepped()

    # -- the run file --------------------------------------------------------------------------

    def _recorder(self) -> OptimizerRecorder | None:
        writer = self._seen.context.writer()
        if writer is None:
            return None
        self.loop.index = self._seen.attachments.new_number("by hand")
        self._seen.write_facts()
        return OptimizerRecorder(writer, {})

    def _stepped(self, step: int, parameters: list[torch.Tensor]) -> None:
        """A step is over; without parameters, it may be none."""
        self._seen.losses.of_step()
        if not parameters:
            return
        self._seen.clips.stepped(step, parameters, len(parameters), self.loop.index)

    def finish(self) -> None:
        """The script is over; mention what the run file lacks."""
        self.loop.finish()
        context = self._seen.context
        if self.loop.unread:
            context.mention(
                f"{self.loop.unread} updates by hand are not recorded: several calls of "
                "torch.autograd.grad came before each, and how the script adds them up is not seen"
            )
        if self.loop.taken_from_calls and context.plan.clip is not None:
            context.mention(
                f"--clip {context.plan.clip} was not applied to updates by hand from "
                "torch.autograd.grad; put what it returns into .grad and step an optimizer of "
                "torch.optim"
            )
