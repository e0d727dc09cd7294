"""A step as it was measured, which becomes a record where somebody asks for one."""

from __future__ import annotations

import math

from steadygrad.kernels import native
from steadygrad.runlog.items import SealedStep, StepItem
from steadygrad.runlog.records import StepRecord


class MeasuredStep(SealedStep):
    """A step that was only looked at: nothing of ours was done to it.

    Last in it are the figures of its tensors, as `kernels.seal` gave them, and a `PassedStep`.
    """

    __slots__ = ()

    def opened(self) -> StepItem:
        step, time, loss, loss_told, lr, optimizer, tensor_ids, figures, passed = self
        read, coef = native.opened(figures), passed.coef
        norm = float(read.total)
        record = StepRecord(
            step,
            time,
            loss,
            norm,
            passed.threshold,
            coef,
            "none" if coef == 1.0 else "clip",
            lr,
            nonfinite=0 if math.isfinite(norm) else int(read.nonfinite.sum()),
            optimizer=optimizer,
            loss_told=loss_told,
        )
        return StepItem(record, time, tensor_ids, *read[:4])
