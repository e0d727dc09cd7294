"""Where a script's optimizers are looked at for clips that are no calls."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterable

import torch

from steadygrad.kernels.native import Stamped
from steadygrad.launch.contracts import RunContext
from steadygrad.torch.clip_calls.arithmetic import HandChanges
from steadygrad.torch.gradients.parameters import parameters_of

MOST_TOLD = 64
"""Optimizers of which the last words tell what was not followed."""


class HandWatch(Stamped):
    """Reads gradients after the first backward passes, and after all where a script clips by hand.

    Where several threads train nothing is read: another one may be adding to those gradients.

    Args:
        context: the run.

    Attributes:
        rests: there is nothing to be read, unless another optimizer comes.
        has_rested: that was so before.
    """

    def __init__(self, context: RunContext) -> None:
        self._context = context
        self._of: weakref.WeakKeyDictionary[torch.optim.Optimizer, HandChanges]
        self._of = weakref.WeakKeyDictionary()
        self._all: list[HandChanges] = []
        # under --clip the script's clips are ours to replace, or stay beside
        self.rests = self._ended = context.plan.clip is not None
        self.has_rested = False
        self._thread = 0

    def of(self, optimizer: torch.optim.Optimizer) -> HandChanges:
        """What looks at one optimizer's gradients."""
        changes = self._of.get(optimizer)
        if changes is None:
            changes = HandChanges(type(optimizer).__name__)
            self._of[optimizer] = changes
            if len(self._all) < MOST_TOLD:  # a script may make an optimizer at every step
                self._all.append(changes)
        self.rests = self._ended
        return changes

    def before_backward(self) -> None:
        """The script calls backward."""
        self._thread = self._thread or threading.get_ident()
        if self._thread != threading.get_ident():
            self._end()

    def _end(self) -> None:
        self.rests = self._ended = True
        self.forget()

    def after_backward(
        self, optimizers: Iterable[torch.optim.Optimizer], loss_scale: object
    ) -> None:
        """A backward is over.

        Args:
            optimizers: those whose gradients it may have reached.
            loss_scale: what these gradients carry, and what will be divided out; None for none.
        """
        if loss_scale is not None:
            self._end()
            return
        looking = [(each, self.of(each)) for each in optimizers]
        # this thread's, and as long as every backward was seen those that have not stepped yet
        own = (self._thread,) if self.has_rested else (0, self._thread)
        looking = [
            (each, changes) for each, changes in looking if changes.looks and changes.thread in own
        ]
        for optimizer, changes in looking:
            changes.after_backward(parameters_of(optimizer))
        self.rests = not any(changes.looks for _, changes in looking)
        self.has_rested = self.has_rested or self.rests

    def finish(self) -> None:
        """The script is over: say what was not followed."""
        for sentence in dict.fromkeys(changes.sentence() for changes in self._all):
            if sentence:
                self._context.mention(sentence)

    def forget(self) -> None:
        """Gradients come from elsewhere now than from the last backward."""
        for changes in self._of.values():
            changes.forget()
