"""Replay a step that holds a NaN or inf once: does it come back?

The tape is that of the search for a NaN's origin. A fault that stays away when the same step is
computed again was transient (memory, a device, a link); one that comes back is in the batch, the
weights or the code. A replay does not see what a script does to gradients after `backward`.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Iterator

import torch

from steadygrad.recovery.events import PERSISTENT, TRANSIENT, UNKNOWN
from steadygrad.torch.gradients.parameters import parameters_of
from steadygrad.torch.origin import patches
from steadygrad.torch.origin.entries import TapeEntry
from steadygrad.torch.origin.replay import BackwardReplay, Impossible
from steadygrad.torch.origin.tape import Tape
from steadygrad.torch.step.snapshot import Snapshot
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
        return _nature(self._tape, self._tape.backwards_of(self._optimizer()))

    def losses(self, then: Snapshot) -> tuple[float, float] | None:
        """The step's loss with the weights of now, and with those of a snapshot.

        Args:
            then: of the optimizer whose steps these are.

        Returns:
            Both, with the loss scale in them; None where the step cannot be replayed.
        """
        optimizer = self._optimizer()
        if optimizer is None:
            return None
        params = parameters_of(optimizer)
        backwards = self._tape.backwards_of(optimizer)
        copies = [then.copy_of(p) for p in params]
        if not 0 < len(backwards) <= MOST_BACKWARDS or any(c is None for c in copies):
            return None
        now = _loss(self._tape, backwards)
        # exchanged, not written: a version counter that moved would spoil the graph of the step
        weights = [p.data for p in params]
        try:
            for p, copy in zip(params, copies, strict=True):
                if copy is not None:
                    p.data = copy.to(p.device, copy=True)
            before = _loss(self._tape, backwards)
        finally:
            for p, data in zip(params, weights, strict=True):
                p.data = data
        return None if now is None or before is None else (now, before)


def _loss(tape: Tape, backwards: list[TapeEntry]) -> float | None:
    total = 0.0
    with _not_listening(tape):
        try:
            for entry in backwards:
                for root in BackwardReplay(tape, entry).losses():
                    total += float(root)
        except Exception:  # a replay that fails says nothing, and ends no training
            return None
    return total


@contextlib.contextmanager
def _not_listening(tape: Tape) -> Iterator[None]:
    armed, tape.armed = tape.armed, False
    was_on = tape.take_off()
    try:
        yield
    finally:
        tape.armed = armed
        if was_on:
            tape.put_on()


def _nature(tape: Tape, backwards: list[TapeEntry]) -> Nature:
    unknown = not 0 < len(backwards) <= MOST_BACKWARDS
    with _not_listening(tape):
        try:
            for entry in () if unknown else backwards:
                try:
                    story = BackwardReplay(tape, entry).run()
                except Impossible:
                    unknown = True
                    continue
                if story.forward is not None or story.events:
                    return PERSISTENT
        except Exception:  # a replay that fails says nothing, and ends no training
            unknown = True
    return UNKNOWN if unknown else TRANSIENT
