"""What one step of an optimizer knows, from before its `step` until after it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from steadygrad.policies import State
from steadygrad.torch.gradients.outcome import StepOutcome
from steadygrad.torch.step.skipping import PutBack
from steadygrad.torch.step.snapshot import Snapshot


@dataclass(slots=True)
class StepInFlight:
    """One step under way.

    Attributes:
        depth: how many `step` functions of this optimizer are running: 2 inside `super().step()`.
        outcome: of the step's gradients: with a closure, of its first evaluation, or of the one
            for which the step is skipped; None before.
        closure_value: the loss that the closure returned at that evaluation; None where unknown.
        handed_on: what the optimizer was last given for its closure's value.
        acted_on: the gradients of a wrapper's step, where it is to be seen what becomes of them.
        evaluations: how often a closure was evaluated so far.
        with_closure: whether the step has a closure, which its optimizer is to evaluate.
        bare: there was no gradient when it began, or after its closure.
        skip: nothing of this step may remain.
        snapshot: weights and state before it; None where they need not be kept.
        policy_state: the policy's state before it.
        put_back: ends what was done for this step only; None for nothing.
        rates: learning rates as the script set them, where this step has lower ones.
        record: files the step with an outcome, where that may change until it is over.
    """

    depth: int = 1
    outcome: StepOutcome | None = None
    closure_value: object = None
    handed_on: object = None
    acted_on: list[torch.Tensor] = field(default_factory=list)
    evaluations: int = 0
    with_closure: bool = False
    bare: bool = False
    skip: bool = False
    snapshot: Snapshot | None = None
    policy_state: State | None = None
    put_back: PutBack | None = None
    rates: list[tuple[dict[str, Any], Any]] | None = None
    record: Callable[[StepOutcome], None] | None = None

    def slow_down(self, optimizer: torch.optim.Optimizer, factor: float) -> None:
        """Multiply the learning rates for this step only."""
        self.rates = [(g, g["lr"]) for g in optimizer.param_groups if "lr" in g]
        for group, rate in self.rates:
            group["lr"] = rate * factor

    def file(self) -> None:
        """Record it, where that was put off; a second call does nothing."""
        record, self.record = self.record, None
        if record is not None and self.outcome is not None:
            record(self.outcome)

    def finish(self) -> None:
        """Undo what was done for this step only; a second call does nothing."""
        put_back, self.put_back = self.put_back, None
        snapshot, self.snapshot = self.snapshot, None
        if self.skip and snapshot is not None:
            snapshot.restore()
        if put_back is not None:
            put_back()
        rates, self.rates = self.rates, None
        for group, rate in rates or ():
            group["lr"] = rate
