"""Notice the first non-finite gradient or loss of an optimizer, and ask where it came from.

The check that is always on costs nothing new: gradients are measured at every step anyway,
and losses are read. Everything else happens once something was found.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Iterable, Sequence
from typing import Any

import torch

from steadygrad.runlog.origin import Origin
from steadygrad.torch.origin import patches
from steadygrad.torch.origin.blame import Case, answer, located
from steadygrad.torch.origin.entries import OutsideTensor, TapeEntry, parts_of
from steadygrad.torch.origin.replay import BackwardReplay, Impossible, several_ranks
from steadygrad.torch.origin.tape import Struck, Weights

MOST_ANSWERS = 3
"""Origins that are looked for in a run: the first, and two more after steps that were skipped."""
SEARCHES = 8
"""Overflows in a row that a loss scaler's search explains."""
MOST_BACKWARDS = 8


class Finder:
    """Watches one optimizer's steps.

    Args:
        optimizer: whose steps; held weakly.
    """

    def __init__(self, optimizer: object) -> None:
        self.tape = patches.listen(self)
        self._optimizer = weakref.ref(optimizer)
        self._answers = 0
        self._overflows = 0

    @property
    def over(self) -> bool:
        """Whether no further origin is looked for."""
        return self._answers >= MOST_ANSWERS

    @property
    def lost(self) -> bool:
        """Whether a loss of this step is not finite."""
        return self.tape.lost(self._optimizer())

    def begin(self) -> None:
        """The forward and backward passes of the next step begin: write them down."""
        if not self.over:
            self.tape.listen()

    def rest(self) -> None:
        """An optimizer step begins: write nothing down until it is over."""
        self.tape.rest()

    def stepped(self) -> None:
        """That step is over."""
        optimizer = self._optimizer()
        if optimizer is not None:
            self.tape.stepped(optimizer)
        self.begin()

    def end(self) -> None:
        """Look no more."""
        patches.forget(self)

    def check(
        self,
        step: int,
        nonfinite: Any,
        grads: Sequence[str],
        params: Sequence[torch.Tensor],
        names: Sequence[str],
        scale: Any = None,
        norm: Any = math.nan,
    ) -> Origin | None:
        """Look at a step's figures before it is applied; explain what is not finite.

        Args:
            step: its number.
            nonfinite: how many elements of each gradient are not finite, an array.
            grads: names of those gradients.
            params: the optimizer's parameters.
            names: what they are called.
            scale: the loss scale of a GradScaler, or None.
            norm: total norm; where it is a finite number, nothing else has to be read.

        Returns:
            The origin, where one was asked for.
        """
        if self.over:
            return None
        lost = self.lost
        sound = isinstance(norm, float) and math.isfinite(norm)
        if not lost and (sound or not bool(nonfinite.any())):
            self._overflows = 0
            return None
        if not lost and scale is not None and not self._is_odd(scale):
            return None
        broken = tuple(n for n, count in zip(grads, nonfinite, strict=True) if count > 0)
        if not broken and self._others():
            return None  # a loss of theirs: these gradients are sound
        case = Case(step, broken[:8], scaled=scale is not None)
        return self._explain(case, params, names)

    def _is_odd(self, scale: Any) -> bool:
        """Whether an overflow is more than a loss scaler's search for its scale."""
        self._overflows += 1
        return self._overflows >= SEARCHES or float(scale) <= 1.0

    def _others(self) -> list[Struck]:
        """The first broken steps of other optimizers."""
        return [struck for key, struck in self.tape.struck.items() if key != id(self)]

    def _of_another(self, case: Case) -> Origin | None:
        """Weights that another optimizer has broken, and that this step has used since."""
        for struck in self._others():
            broken = _broken(struck.alive())
            if broken and self._uses(struck, broken):
                return _weights_lost(case, broken, "The weights of another optimizer were lost")
        return None

    def _uses(self, struck: Struck, broken: Weights) -> bool:
        """Whether this step has used one of these weights after the step that broke them."""
        ids = {id(weight) for _, weight in broken}
        for entry in self.tape.entries:
            if entry.clock <= struck.clock:
                continue
            for part in (entry.func, *parts_of(entry)):
                value = part.value if isinstance(part, OutsideTensor) else part
                inside = value.parameters() if isinstance(value, torch.nn.Module) else [value]
                if not ids.isdisjoint(map(id, inside)):
                    return True
        return False

    def _explain(
        self,
        case: Case,
        params: Sequence[torch.Tensor],
        names: Sequence[str],
    ) -> Origin | None:
        first = self._answers == 0
        self._answers += 1
        origin = _of_weights(case, params, names) or self._of_another(case)
        if first:
            weights = [(name, weakref.ref(p)) for name, p in zip(names, params, strict=True)]
            self.tape.struck[id(self)] = Struck(self.tape.clock, weights)
        if origin is None:
            backwards = self.tape.backwards_of(self._optimizer())
            origin = explain(self.tape, case, backwards[-MOST_BACKWARDS:])
        else:
            self._answers = MOST_ANSWERS  # from here on every step is broken
        if origin.phase == "scale":
            self._answers -= 1
            return None
        if self.over:
            self.end()
        if origin.phase == "weights" and not first:
            return None  # what was explained before has been applied
        return origin


def explain(tape: Any, case: Case, backwards: Sequence[TapeEntry]) -> Origin:
    """Replay the backward passes of a step until one shows what is not finite.

    Args:
        tape: where they were written down.
        case: the step.
        backwards: its backward passes, on the tape.

    Returns:
        The origin; where none can be shown, why.
    """
    why = "no backward pass of this step was seen"
    at = None
    armed, tape.armed = tape.armed, False
    was_on = tape.take_off()
    try:
        for entry in backwards:
            at = entry.place
            try:
                replay = BackwardReplay(tape, entry)
                origin = answer(case, replay, replay.run())
                why = _nothing_shown()
            except Impossible as reason:
                origin, why = None, str(reason)
            except Exception as error:
                origin, why = None, f"the replay raised {type(error).__name__}: {error}"
            if origin is not None:
                return origin
    finally:
        tape.armed = armed
        if was_on:
            tape.put_on()
    file, line, source = located(at)
    return Origin(
        case.step, "unknown", file=file, line=line, source=source, why_not=why, tensors=case.tensors
    )


def _of_weights(case: Case, params: Sequence[torch.Tensor], names: Sequence[str]) -> Origin | None:
    """Weights that were broken before the step: there is nothing to replay."""
    broken = _broken(zip(names, params, strict=True))
    return _weights_lost(case, broken, "The weights were lost") if broken else None


def _broken(weights: Iterable[tuple[str, torch.Tensor]]) -> Weights:
    return [
        (name, weight)
        for name, weight in weights
        if type(weight) in (torch.Tensor, torch.nn.Parameter) and not _finite([weight])
    ]


def _weights_lost(case: Case, broken: Weights, what: str) -> Origin:
    listed = ", ".join(name for name, _ in broken[:3])
    more = f" and {len(broken) - 3} more" if len(broken) > 3 else ""
    return Origin(
        case.step,
        "weights",
        operation=listed + more,
        first_kind="nan" if any(bool(p.isnan().any()) for _, p in broken) else "inf",
        replayed=True,
        why_not=f"{what} before this step, so that there is nothing to replay",
        tensors=case.tensors,
    )


def _nothing_shown() -> str:
    if several_ranks():
        return (
            "the replay on this rank came out finite; gradients are averaged over ranks, "
            "so another rank has the origin"
        )
    return (
        "the replay came out finite: either something between backward() and the step changed "
        "the gradients, or the forward pass depends on what a replay cannot put back"
    )


def _finite(values: Sequence[torch.Tensor]) -> bool:
    return all(bool(torch.isfinite(value).all()) for value in values)
