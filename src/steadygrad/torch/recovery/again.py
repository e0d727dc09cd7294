"""One replay of a step that holds a NaN or inf: is it there again?

The tape is that of the search for a NaN's origin. A fault that stays away when the same step is
computed again was transient (memory, a device, a link); one that comes back is in the batch, the
weights or the code. A replay does not see what a script does to gradients after `backward`.
"""

from __future__ import annotations

import weakref

import torch

from steadygrad.recovery.events import PERSISTENT, TRANSIENT, UNKNOWN
from steadygrad.torch.origin import patches
from steadygrad.torch.origin.entries import TapeEntry
from steadygrad.torch.origin.replay import BackwardReplay, Impossible
from steadygrad.torch.origin.tape import Tape
from steadygrad.vocabulary import Nature

MOST_BACKWARDS = 64
"""Backward passes of one step that are replayed."""


class StepAgain:
    """Keeps what one optimizer's step needs to be run again.

    Args:
        optimizer: whose steps; held weakly.
    """

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self._tape = patches.listen(self)
        self._optimizer = weakref.ref(optimizer)
        self.begin()

    def begin(self) -> None:
        """From now on the training computes what the next step applies."""
        self._tape.listen()

    def rest(self) -> None:
        """A step begins."""
        self._tape.rest()

    def stepped(self) -> None:
        """That step is over."""
        optimizer = self._optimizer()
        if optimizer is not None:
            self._tape.stepped(optimizer)
        self.begin()

    def end(self) -> None:
        """Keep no more."""
        patches.forget(self)

    def nature(self) -> Nature:
        """Run the step once more; call it before the optimizer moves the weights."""
        backwards = self._tape.backwards_of(self._optimizer())
        if not 0 < len(backwards) <= MOST_BACKWARDS:
            return UNKNOWN
        return _nature(self._tape, backwards)


def _nature(tape: Tape, backwards: list[TapeEntry]) -> Nature:
    armed, tape.armed = tape.armed, False
    was_on = tape.take_off()
    unknown = False
    try:
        for entry in backwards:
            try:
                story = BackwardReplay(tape, entry).run()
            except Impossible:
                unknown = True
                continue
            if story.forward is not None or story.events:
                return PERSISTENT
    except Exception:  # a replay that fails says nothing, and ends no training
        unknown = True
    finally:
        tape.armed = armed
        if was_on:
            tape.put_on()
    return UNKNOWN if unknown else TRANSIENT
