"""A step's figures where the script has clipped before the optimizer's own step.

`ObservingClipper` stands in for the ordinary clipper in an attached optimizer. What the
script's clip calls have read already is not read again, and what they did
is recorded as if a policy had done it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from steadygrad import kernels
from steadygrad.policies import NoClip
from steadygrad.stats import GradientStats
from steadygrad.torch.applied import compare, unit_of
from steadygrad.torch.batch import Batch
from steadygrad.torch.clipper import Clipper, Outcome, Scale, Skip
from steadygrad.torch.measuring import namespace, total_of


@dataclass
class Row:
    """One gradient before the script changed it, and what was left of it.

    Attributes:
        parameter: id of its parameter.
        norm: p-norm before.
        max_abs: largest finite magnitude before.
        nonfinite: NaN and inf elements before.
        zeros: zero elements before.
        left: p-norm after.
        dot: inner product of before and after; NaN where unknown.
        norm_type: the p of the norms.
        threshold: of the last clip call; inf before one.
    """

    parameter: int
    norm: Any
    max_abs: Any
    nonfinite: Any
    zeros: Any
    left: Any
    dot: Any
    norm_type: float = 2.0
    threshold: Any = math.inf

    def exceeds(self, clip_value: Any) -> bool:
        """Whether clamping would change it; True on a device, where asking would wait."""
        if isinstance(self.max_abs, torch.Tensor):
            return True
        return bool(self.max_abs > float(clip_value)) or bool(self.nonfinite)

    def scale(self, coef: Any) -> None:
        """It was multiplied by a coefficient."""
        self.left, self.dot = self.left * coef, self.dot * coef

    def clamp(self, left: Any, dot: Any) -> None:
        """It was clamped: norm after, inner product with what stood before the clamp."""
        shrunk = self.left / self.norm if not _is_zero(self.norm) else 1.0
        self.left, self.dot = left, dot / shrunk if not _is_zero(shrunk) else self.dot

    def unscale(self, scale: Any) -> None:
        """The gradient was divided by the loss scale."""
        by = scale if isinstance(self.norm, torch.Tensor) else float(scale)
        self.norm, self.max_abs = self.norm / by, self.max_abs / by
        self.left, self.dot = self.left / by, self.dot / (by * by)
        self.threshold = self.threshold / by


def rows_of(parameters: Sequence[torch.Tensor], norm_type: float) -> list[Row]:
    """Read gradients once, a row each.

    Args:
        parameters: with gradients.
        norm_type: p of the norms.

    Returns:
        One row a parameter, nothing changed yet.

    Example:
        >>> weight = torch.zeros(2, requires_grad=True)
        >>> weight.grad = torch.tensor([3.0, 4.0])
        >>> row = rows_of([weight], 2.0)[0]
        >>> row.scale(0.5)
        >>> float(row.norm), float(row.left)
        (5.0, 2.5)
    """
    if not parameters:
        return []
    read = kernels.read([p.grad for p in parameters if p.grad is not None], norm_type)
    two = norm_type == 2.0
    return [
        Row(id(p), norm, top, bad, none, norm, norm * (norm if two else math.nan), norm_type)
        for p, norm, top, bad, none in zip(
            parameters, read.norms, read.max_abs, read.nonfinite, read.zeros, strict=True
        )
    ]


def _is_zero(value: Any) -> bool:
    return not isinstance(value, torch.Tensor) and float(value) == 0.0


class ObservingClipper(Clipper):
    """Clips nothing; reports what the script's own calls did to the gradients.

    Args:
        on_nonfinite: what to do with gradients that hold NaN or inf.
        valid: gives a parameter's row where the script's call was the last to touch its gradient.
        stepping: told of every step, after its figures were taken.
    """

    def __init__(
        self,
        on_nonfinite: str,
        valid: Callable[[torch.Tensor], Row | None],
        stepping: Callable[[int], None],
    ) -> None:
        super().__init__(NoClip(), on_nonfinite)
        self._valid = valid
        self._stepping = stepping

    def process(
        self,
        batch: Batch,
        step: int,
        scaled: bool = False,
        scale_: Scale = kernels.scale_,
        skip: Skip | None = None,
    ) -> Outcome:
        rows = [self._valid(parameter) for parameter in batch.params]
        known = [row for row in rows if row is not None]
        try:
            if not known:
                return super().process(batch, step, scaled, scale_, skip)
            full = _complete(rows, batch, known[0].norm_type)
            outcome = summed_up(full, batch)
            guarded = scaled or self.on_nonfinite != "propagate"
            if guarded and bool((outcome.stats.nonfinite > 0).any()):
                acted = super().process(batch, step, scaled, scale_)
                return replace(acted, stats=outcome.stats, threshold=outcome.threshold)
            return outcome
        finally:
            self._stepping(step)


def _complete(rows: Sequence[Row | None], batch: Batch, norm_type: float) -> list[Row]:
    lacking = [
        p
        for p, row in zip(batch.params, rows, strict=True)
        if row is None or row.norm_type != norm_type
    ]
    fresh = {row.parameter: row for row in rows_of(lacking, norm_type)}
    full = [fresh.get(id(p), row) for p, row in zip(batch.params, rows, strict=True)]
    complete = [row for row in full if row is not None]
    if batch.scale is not None:
        for row in complete:
            row.unscale(batch.scale)
    return complete


def summed_up(rows: Sequence[Row], batch: Batch) -> Outcome:
    """One step's outcome from the rows of its gradients.

    Args:
        rows: one a gradient of the batch.
        batch: the gradients.

    Returns:
        Figures before clipping, and what the script's calls left.
    """
    stats = GradientStats(
        names=batch.names,
        norms=_column([row.norm for row in rows]),
        max_abs=_column([row.max_abs for row in rows]),
        nonfinite=_column([row.nonfinite for row in rows]),
        zeros=_column([row.zeros for row in rows]),
        sizes=batch.sizes,
        total_norm=None,
        norm_type=rows[0].norm_type,
    )
    stats = replace(stats, total_norm=total_of(stats.norms, stats.norm_type))
    unit = unit_of(stats)
    left, dots = _column([row.left for row in rows]), _column([row.dot for row in rows])
    changed = namespace(stats.norms).any(left != stats.norms)
    applied = compare(stats, left / unit, dots / unit / unit, changed)
    threshold = next((r.threshold for r in rows if _is_set(r.threshold)), math.inf)
    return Outcome(stats, threshold, applied)


def _column(values: list[Any]) -> Any:
    if torch.Tensor in set(map(type, values)):  # at every step, over every tensor
        device = next(value.device for value in values if isinstance(value, torch.Tensor))
        return torch.stack([torch.as_tensor(value, device=device) for value in values])
    return np.array(values)


def _is_set(threshold: Any) -> bool:
    return isinstance(threshold, torch.Tensor) or threshold != math.inf
