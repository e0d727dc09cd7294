"""Where a clip call stands that is known from a trace: its data flow, not its time."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

from steadygrad.runlog.clip_calls import CallBook, Place
from steadygrad.vocabulary import SCRIPT_CLIP

if TYPE_CHECKING:
    from steadygrad.runlog import RunWriter


class CallTime(NamedTuple):
    """When a clip call came.

    Attributes:
        step: number of the optimizer step that follows it.
        optimizer: that optimizer's number.
        batch: number of the micro-batch, from 1.
    """

    step: int
    optimizer: int
    batch: int = 1


@dataclass(frozen=True)
class Placement:
    """Where one clip call of the script stands, as its trace shows it.

    Attributes:
        function: what the script calls, such as ``tf.clip_by_norm``.
        tensors: how many gradients of the step it was given.
        passed: how many tensors it was given.
        of_tensors: how many gradients the step has.
        by_value: elements are clamped.
        per_tensor: each tensor has a norm of its own.
        depth: clip calls that these gradients have passed before.
        scaled: the gradients carry a loss scale.
        late: a step had applied the gradients already.
        discarded: the step was given the gradients as they were before the call.
        own: the optimizer clips by itself, as the last before its step.
        max_norm: its threshold, where the trace knows it; NaN where only the row does.
    """

    function: str
    tensors: int
    passed: int
    of_tensors: int
    by_value: bool = False
    per_tensor: bool = False
    depth: int = 0
    scaled: bool = False
    late: bool = False
    discarded: bool = False
    own: bool = False
    max_norm: float = math.nan

    @property
    def without_effect(self) -> bool:
        """Whether no step sees what the call returns."""
        return self.late or self.discarded

    def goes_with(self, other: Placement) -> bool:
        """Whether both are calls for one tensor each in the same loop over gradients."""
        single = self.by_value or self.per_tensor
        alike = (self.function, str(self.max_norm), self.late, self.discarded)
        return single and alike == (
            other.function,
            str(other.max_norm),
            other.late,
            other.discarded,
        )

    def joined(self, other: Placement) -> Placement:
        """The one call that both make up."""
        return replace(
            self, tensors=self.tensors + other.tensors, passed=self.passed + other.passed
        )

    def place(self, max_norm: float, batch: int) -> Place:
        """What tells this call from a misplaced one, in the words of ``clip_calls``.

        An optimizer that clips by itself does so once, after the last micro-batch.

        Args:
            max_norm: its threshold.
            batch: number of the micro-batch, from 1.

        Returns:
            Names to values.
        """
        return {
            "call": self.function,
            "by_value": self.by_value,
            "per_tensor": self.per_tensor,
            "norm_type": 2.0,
            "unlimited": max_norm == math.inf,
            "before_backward": self.late,
            "after_step": self.late,
            "repeated": self.depth > 0 or (batch > 1 and not self.own),
            "per_micro_batch": batch > 1 and not self.own,
            "unscaled": not self.scaled,
            "partial": 0 < self.tensors < self.of_tensors,
            "no_gradients": self.tensors == 0,
            "on_gradients": False,
            "discarded": self.discarded,
        }

    def event(self, step: int, optimizer: int, batch: int, figures: Mapping[str, float]) -> Event:
        """The call as a ``script_clip`` event.

        Args:
            step: number of the optimizer step that follows it.
            optimizer: that optimizer's number.
            batch: number of the micro-batch, from 1.
            figures: ``max_norm``, ``norm`` before the call and ``coef``.

        Returns:
            The event's data.
        """
        since_clip = batch if self.own else 1
        return {
            "step": step,
            "optimizer": optimizer,
            "call": self.function,
            "norm_type": 2.0,
            **figures,
            "params": self.tensors,
            "passed": self.passed,
            "of_params": self.of_tensors,
            "backward_since_step": 0 if self.late else batch,
            "backward_since_clip": 0 if self.depth or self.late else since_clip,
            "repeated": self.depth + (0 if self.own else batch - 1),
            "after_step": self.late,
            "unscaled": not self.scaled,
            "by_value": self.by_value,
            "per_tensor": self.per_tensor,
            "on_gradients": False,
            "discarded": self.discarded,
        }

    def enter(
        self, book: CallBook, writer: RunWriter | None, turn: CallTime, figures: Mapping[str, float]
    ) -> None:
        """Count the call, and write it where the book wants it as an event.

        Args:
            book: counts clip calls.
            writer: the run file's; None where there is none.
            turn: when it came.
            figures: ``max_norm``, ``norm`` before the call and ``coef``.
        """
        limit = figures["max_norm"]
        is_new = book.enter(self.place(limit, turn.batch), turn.step, turn.optimizer, limit)
        if is_new and writer is not None:
            writer.write_event(SCRIPT_CLIP, self.event(*turn, figures), turn.step)


Event = dict[str, float | str]


class PlacementTable:
    """Clip calls by the number under which a step's row of figures refers to them."""

    def __init__(self) -> None:
        self._calls: list[list[Placement]] = []
        self._numbers: dict[tuple[Placement, ...], int] = {}
        self._traced: set[int] = set()
        self._late: list[Placement] = []

    def enter(self, placements: Sequence[Placement], traced: bool = False) -> int:
        """Register the clip calls of one trace.

        Args:
            placements: the calls.
            traced: they are of code that runs again, to which `add_late` may add.

        Returns:
            Their number; -1 for no calls that could become some.
        """
        key = (*placements, *self._late)
        self._late = []
        if not key and not traced:
            return -1
        if not traced and key in self._numbers:
            return self._numbers[key]
        self._calls.append(list(key))
        number = len(self._calls) - 1
        if traced:
            self._traced.add(number)
        else:
            self._numbers[key] = number
        return number

    def add_late(self, number: int, placement: Placement) -> None:
        """Note a clip call that stands behind the step, in the code that is traced.

        Args:
            number: the step's, as `enter` gave it; -1 where nothing is traced: the call is then
                told with the step that follows.
            placement: the call.
        """
        calls = self._late if number < 0 else self._calls[number]
        for index, other in enumerate(calls):
            if other.goes_with(placement):
                calls[index] = other.joined(placement)
                return
        calls.append(placement)

    def at(self, number: int) -> Sequence[Placement]:
        """The calls of a number; none for -1."""
        return self._calls[number] if number >= 0 else ()

    def is_behind(self, number: int, placement: Placement) -> bool:
        """Whether a call stands behind the step that it was traced with, so before the next."""
        return placement.late and number in self._traced
