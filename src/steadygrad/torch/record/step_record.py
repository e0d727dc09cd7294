"""From what was found and done in a step to its record.

On the host the record is made at once. Figures on a device stay there: the record then begins
with what the host knows, and `steadygrad.torch.record.outbox` adds the rest when it has arrived.
"""

from __future__ import annotations

import math
import time
from typing import Any

import torch

from steadygrad.runlog.records import StepRecord
from steadygrad.torch.step.clipper import Outcome


def record_of(
    step: int, outcome: Outcome, loss: Any, lr: Any, loss_scale: Any = None, optimizer: int = 0
) -> StepRecord:
    """The record of a step whose figures are read here.

    Args:
        step: its number.
        outcome: what was found and done.
        loss: its loss, a number or a tensor; None where nobody told it, which gives NaN.
        lr: the learning rate, likewise.
        loss_scale: the factor that its gradients carried; None for none.
        optimizer: number of the optimizer within the run.

    Returns:
        The record, of plain numbers.
    """
    applied, norm = outcome.applied, float(outcome.stats.total_norm)
    return StepRecord(
        step,
        time.time(),
        loss if type(loss) is float else number(loss),
        norm,
        float(outcome.threshold),
        float(applied.coef),
        "skip" if outcome.skip else "clip" if applied.clipped else "none",
        lr if type(lr) is float else number(lr),
        1.0 if loss_scale is None else number(loss_scale),
        0 if math.isfinite(norm) else int(outcome.stats.nonfinite.sum()),
        float(applied.cosine),
        optimizer,
        loss is not None,
    )


def begun_record(
    step: int, outcome: Outcome, loss: Any, lr: Any, loss_scale: Any = None, optimizer: int = 0
) -> tuple[StepRecord, dict[str, torch.Tensor]]:
    """The record of a step whose figures are on a device, and those figures; reads none.

    Args:
        step: its number.
        outcome: what was found and done.
        loss: its loss; on another device, or of several elements, it is read here.
        lr: the learning rate, likewise.
        loss_scale: the factor that its gradients carried, likewise.
        optimizer: number of the optimizer within the run.

    Returns:
        The record without them, and what is missing by its field's name, ``clipped`` and ``skip``.
    """
    home = outcome.stats.total_norm.device
    figures = {
        "loss": loss,
        "norm": outcome.stats.total_norm,
        "threshold": outcome.threshold,
        "coef": outcome.applied.coef,
        "cosine": outcome.applied.cosine,
        "clipped": outcome.applied.clipped,
        "skip": outcome.skip,
        "lr": lr,
        "loss_scale": 1.0 if loss_scale is None else loss_scale,
    }
    there = {key: value for key, value in figures.items() if _is_on(value, home)}
    here: dict[str, Any] = {
        key: number(value) for key, value in figures.items() if key not in there
    }
    clipped, skipped = here.pop("clipped", 0.0), here.pop("skip", 0.0)
    action = "skip" if skipped else "clip" if clipped else "none"
    told = loss is not None
    return StepRecord(
        step, time.time(), action=action, optimizer=optimizer, loss_told=told, **here
    ), there


def number(value: Any) -> float:
    """A float of whatever a loss or a learning rate may be; NaN where it is not one number.

    Example:
        >>> number(torch.tensor(0.5)), number(None)
        (0.5, nan)
    """
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError):
        return math.nan


def _is_on(value: Any, device: torch.device) -> bool:
    return isinstance(value, torch.Tensor) and value.device == device and value.numel() == 1
