"""A step as it was measured, which becomes a record where somebody asks for one."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from steadygrad.kernels import native
from steadygrad.runlog.items import SealedStep, StepItem
from steadygrad.runlog.records import StepRecord
from steadygrad.torch.gradients.outcome import PassedStep


class MeasuredStep(SealedStep):
    """A step that was only looked at: nothing of ours was done to it.

    Args:
        step: its number.
        time: seconds since the Unix epoch.
        loss: its loss; NaN where unknown.
        loss_told: whether somebody told it.
        lr: the learning rate; NaN where unknown.
        optimizer: number of the optimizer within the run.
        tensor_ids: numbers of the tensors in the run file.
        figures: theirs, as `kernels.seal` gave them.
        passed: what the script did.
    """

    __slots__ = (
        "figures",
        "loss",
        "loss_told",
        "lr",
        "optimizer",
        "passed",
        "step",
        "tensor_ids",
        "time",
    )

    def __init__(
        self,
        step: int,
        time: float,
        loss: float,
        loss_told: bool,
        lr: float,
        optimizer: int,
        tensor_ids: NDArray[np.int64],
        figures: bytearray,
        passed: PassedStep,
    ) -> None:
        self.step, self.time, self.loss, self.loss_told = step, time, loss, loss_told
        self.lr, self.optimizer, self.tensor_ids = lr, optimizer, tensor_ids
        self.figures, self.passed = figures, passed

    def opened(self) -> StepItem:
        read, coef = native.opened(self.figures), self.passed.coef
        norm = float(read.total)
        record = StepRecord(
            self.step,
            self.time,
            self.loss,
            norm,
            self.passed.threshold,
            coef,
            "none" if coef == 1.0 else "clip",
            self.lr,
            nonfinite=0 if math.isfinite(norm) else int(read.nonfinite.sum()),
            optimizer=self.optimizer,
            loss_told=self.loss_told,
        )
        return StepItem(record, self.time, self.tensor_ids, *read[:4])
