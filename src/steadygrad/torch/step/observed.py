"""A step's figures where the script has clipped before the optimizer's own step.

`ObservingClipper` stands in for the ordinary clipper in an attached optimizer. What the
script's clip calls have read already is not read again, and what they did
is recorded as if a policy had done it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch

from steadygrad import kernels
from steadygrad.policies import NoClip
from steadygrad.stats import GradientStats
from steadygrad.torch.clip_calls.arithmetic import HandChanges
from steadygrad.torch.clip_calls.clips import QuietSteps
from steadygrad.torch.clip_calls.readings import GradientReading
from steadygrad.torch.gradients.batch import GradientBatch
from steadygrad.torch.gradients.measuring import namespace, total_of, unscaled
from steadygrad.torch.gradients.outcome import (
    UNTOUCHED,
    Applied,
    StepOutcome,
    compare,
    is_broken,
    unit_of,
)
from steadygrad.torch.step.clipper import Clipper, Scale, Skip
from steadygrad.vocabulary import OnNonfinite


def _say_nothing(step: int, batch: GradientBatch) -> None:
    """Nobody wants to be told."""


class ObservingClipper(Clipper):
    """Clips nothing; reports what the script's own calls did to the gradients.

    Args:
        on_nonfinite: what to do with gradients that hold NaN or inf.
        reading_of: gives what gradients were before the script's calls; None where it made none.
        stepping: told of every step's number and gradients, after its figures were taken.
        quiet: see `Clipper.quiet`; `stepping` is not told of what goes by.
        by_hand: finds clips that are no calls; None to look for none.

    Attributes:
        was_inside: a clip call inside the last step was seen, and is on record.
    """

    def __init__(
        self,
        on_nonfinite: OnNonfinite,
        reading_of: Callable[[Sequence[torch.Tensor]], GradientReading | None],
        stepping: Callable[[int, GradientBatch], None] = _say_nothing,
        quiet: QuietSteps | None = None,
        by_hand: HandChanges | None = None,
    ) -> None:
        super().__init__(NoClip(), on_nonfinite)
        self._reading_of = reading_of
        self._stepping = stepping
        self._usually_quiet = quiet if on_nonfinite == "propagate" else None
        self._by_hand = by_hand
        self.quiet = None
        self._may_rest()
        self.was_inside = False

    def _may_rest(self) -> None:
        """Steps go by quietly where there is nothing to look for."""
        looks = self.waits or (self._by_hand is not None and self._by_hand.looks)
        self.quiet = None if looks else self._usually_quiet

    def look_inside(self) -> None:
        """The optimizer's step may clip by itself: wait for its end."""
        self.waits, self.quiet = True, None

    def after_step(self, outcome: StepOutcome, batch: GradientBatch) -> StepOutcome:
        own = batch.with_gradients()
        reading = self._reading_of(own.params)
        self.was_inside = reading is not None
        if reading is None:  # steps go by as others do, until a clip call inside one is heard
            outcome = self._changed_inside(outcome, batch)
            self.waits = self._by_hand is not None and self._by_hand.looks_inside
            self._may_rest()
            return outcome
        inside = self._outcome_of(reading, batch, own)
        return inside if outcome.threshold == math.inf else _joined(outcome, inside)

    def _changed_inside(self, outcome: StepOutcome, batch: GradientBatch) -> StepOutcome:
        """The same, with what arithmetic inside the step has clipped."""
        by_hand = self._by_hand
        if by_hand is None or batch.spread.pieces or batch.scale is not None or not batch.grads:
            return outcome
        after = super().measure(batch)
        limit, applied = by_hand.inside(batch.params, outcome.stats, after)
        if outcome.threshold != math.inf or limit == math.inf:
            return outcome
        return outcome._replace(threshold=limit, applied=applied)

    def _changed_between(self, outcome: StepOutcome, own: GradientBatch) -> StepOutcome:
        """The same, before arithmetic that has clipped it."""
        by_hand = self._by_hand
        if by_hand is None or own.spread.pieces or own.scale is not None:
            return outcome
        stats, limit, applied = by_hand.between(own.params, outcome.stats)
        self._may_rest()
        return outcome._replace(stats=stats, threshold=limit, applied=applied)

    def process(
        self,
        batch: GradientBatch,
        step: int,
        scaled: bool = False,
        scale_: Scale = kernels.scale_,
        skip: Skip | None = None,
    ) -> StepOutcome:
        try:
            own = batch.with_gradients()
            reading = self._reading_of(own.params)
            guarded = scaled or self.on_nonfinite != "propagate"
            if reading is None and guarded:
                acted = super().process(batch, step, scaled, scale_, skip)
                return acted if acted.applied.clipped else self._changed_between(acted, own)
            if reading is None:  # there is nothing to decide
                return self._changed_between(StepOutcome(super().measure(batch)), own)
            if self._by_hand is not None:
                self._by_hand.stepped()
                self._may_rest()
            outcome = self._outcome_of(reading, batch, own)
            if guarded and bool(is_broken(outcome.stats)):
                acted = super().process(batch, step, scaled, scale_)
                return acted._replace(
                    stats=outcome.stats, threshold=outcome.threshold, present=outcome.present
                )
            return outcome
        finally:
            self._stepping(step, batch)

    def measure(self, batch: GradientBatch) -> GradientStats:
        """A step's figures before the script's calls, of one that is dropped too."""
        # under FSDP1 a reading is of this rank's pieces, and figures are of all
        reading = None if batch.spread.pieces else self._reading_of(batch.params)
        if reading is None:
            return super().measure(batch)
        if batch.scale is not None:
            reading.unscale(batch.scale)
        return summed_up(reading, batch).stats

    def _outcome_of(
        self, reading: GradientReading, batch: GradientBatch, own: GradientBatch
    ) -> StepOutcome:
        if batch.scale is not None:
            reading.unscale(batch.scale)
        outcome = summed_up(reading, own)
        return outcome if own is batch else self._of_all_ranks(outcome, reading, batch, own)

    def _of_all_ranks(
        self,
        outcome: StepOutcome,
        reading: GradientReading,
        batch: GradientBatch,
        own: GradientBatch,
    ) -> StepOutcome:
        """Figures of all tensors where this rank has pieces of some (FSDP1)."""
        if reading.uneven or not isinstance(reading.factor, float) or reading.factor <= 0:
            return outcome._replace(present=own.present)
        after, factor = super().measure(batch), reading.factor
        stats = replace(
            after,
            norms=after.norms / factor,
            max_abs=after.max_abs / factor,
            total_norm=outcome.stats.total_norm,
            own=None if after.own is None else unscaled(after.own, factor),
        )
        return outcome._replace(stats=stats)


def _joined(before: StepOutcome, inside: StepOutcome) -> StepOutcome:
    """What clip calls before a step and inside of it have left together."""
    first, then = before.applied, inside.applied
    applied = Applied(
        first.coef * then.coef,
        first.cosine if then.cosine is UNTOUCHED.cosine else math.nan,
        first.clipped | then.clipped,
    )
    limits = namespace(before.stats.norms)
    threshold = limits.minimum(limits.asarray(before.threshold), limits.asarray(inside.threshold))
    return before._replace(threshold=threshold, applied=applied)


def summed_up(reading: GradientReading, batch: GradientBatch) -> StepOutcome:
    """One step's outcome from the reading of its gradients.

    Args:
        reading: of the batch's gradients, in its order.
        batch: the gradients.

    Returns:
        Figures before clipping, and what the script's calls left.
    """
    norms, norm_type = reading.norms, reading.norm_type
    stats = GradientStats(
        names=batch.names,
        norms=norms,
        max_abs=reading.max_abs,
        nonfinite=reading.nonfinite,
        zeros=reading.zeros,
        sizes=batch.sizes,
        total_norm=total_of(norms, norm_type) if reading.total is None else reading.total,
        norm_type=norm_type,
        own=reading.own,
    )
    if reading.is_usual:
        applied = Applied(reading.factor, 1.0, reading.factor != 1.0)
        return StepOutcome(stats, reading.threshold, applied)
    with np.errstate(all="ignore"):  # not finite, or lost in a clamp: NaN says so
        unit = unit_of(stats)
        changed = namespace(norms).any(reading.left != norms)
        applied = compare(stats, reading.left / unit, reading.dots / unit / unit, changed)
    return StepOutcome(stats, reading.threshold, applied)
