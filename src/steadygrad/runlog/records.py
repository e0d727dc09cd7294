"""What is recorded: frozen plain data, shared by writers, readers and `steady.last`."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import numpy as np

from steadygrad.vocabulary import Action

NAN = math.nan


STEP_DTYPE = np.dtype(
    [
        ("step", np.int64),
        ("time", np.float64),
        ("loss", np.float64),
        ("norm", np.float64),
        ("threshold", np.float64),
        ("coef", np.float64),
        ("action", "U4"),
        ("lr", np.float64),
        ("loss_scale", np.float64),
        ("nonfinite", np.int64),
        ("cosine", np.float64),
        ("optimizer", np.int64),
    ]
)
"""The columns of `run.steps`."""


@dataclass(frozen=True)
class StepRecord:
    """One optimizer step.

    Attributes:
        step: number of this optimizer's step, from 0; skipped steps count.
        time: seconds since the Unix epoch.
        loss: sum of the losses since the last step, unscaled; NaN where unknown.
        norm: total norm before clipping, unscaled; inf or NaN where a gradient is.
        threshold: the `max_norm` (or `clip_value`) in force; inf where none.
        coef: norm of what was applied over the norm before clipping; 1 unless clipped.
        action: ``none``, ``clip`` or ``skip``.
        lr: learning rate of the first parameter group; NaN where unknown.
        loss_scale: factor that the gradients carried when `step` was called; 1 for none.
        nonfinite: number of NaN and inf gradient elements.
        cosine: between the gradient and what was applied; 1 for scaling, NaN where unknown.
        optimizer: number of the optimizer within the run, from 0.
        loss_told: whether somebody told this step's loss, so that a NaN is what the loss was. Not
            a column of the file: an event there says from which step on the loss was NaN.
    """

    step: int
    time: float = NAN
    loss: float = NAN
    norm: float = NAN
    threshold: float = math.inf
    coef: float = 1.0
    action: Action = "none"
    lr: float = NAN
    loss_scale: float = 1.0
    nonfinite: int = 0
    cosine: float = 1.0
    optimizer: int = 0
    loss_told: bool = False

    @classmethod
    def made_of(cls, **values: object) -> StepRecord:
        """A record of these values, by the names of its fields; the others as by default.

        It takes a third of the time that a call takes, which sets each field by a call of its own.
        """
        record = object.__new__(cls)
        vars(record).update(_DEFAULTS)
        vars(record).update(values)
        return record

    @property
    def applied_norm(self) -> float:
        """Total norm of what was handed to the optimizer: after clipping, and 0 where skipped.

        Example:
            >>> StepRecord(0, norm=5.0, coef=0.2).applied_norm
            1.0
        """
        return applied_norm(self.norm, self.coef, self.action)


_DEFAULTS = {each.name: each.default for each in fields(StepRecord) if each.name != "step"}


def applied_norm(norm: float, coef: float, action: str) -> float:
    """The norm after clipping, from the columns of a step."""
    return 0.0 if action == "skip" else norm * coef


@dataclass(frozen=True)
class TensorInfo:
    """One parameter, as the run file describes it.

    Attributes:
        name: its qualified name, e.g. ``rnn.weight_hh_l0``.
        shape: its shape.
        dtype: its dtype as the framework prints it without prefix, e.g. ``float32``.
        module: type name of the module that owns it, e.g. ``LSTM``; empty where unknown.
        position: place of that module in the forward order; -1 where unknown.
        optimizer: number of the optimizer that holds it; -1 for none.
    """

    name: str
    shape: tuple[int, ...] = ()
    dtype: str = ""
    module: str = ""
    position: int = -1
    optimizer: int = 0
