"""What is left of the gradients after acting: its norm, and how far the direction turned."""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import torch

from steadygrad.policies import stepping
from steadygrad.stats import GradientStats
from steadygrad.torch.gradients.measuring import namespace


class Applied(NamedTuple):
    """What is left of the gradients; 0-d arrays on a device.

    Attributes:
        coef: norm of what is left over the norm before.
        cosine: between before and after; NaN where the norms measured do not tell.
        clipped: whether anything was changed.
    """

    coef: Any = 1.0
    cosine: Any = 1.0
    clipped: Any = False


UNTOUCHED = Applied()


class StepOutcome(NamedTuple):
    """What was found and done; 0-d arrays where the gradients live on a device.

    Attributes:
        stats: the figures before clipping.
        threshold: the `max_norm` or `clip_value` in force.
        applied: what is left of the gradients.
        skip: whether the step must be dropped whole; a 0-d tensor where the optimizer was told.
        present: places of the tensors in `stats`, where they are not those of the batch.
    """

    stats: GradientStats
    threshold: Any = float("inf")
    applied: Applied = UNTOUCHED
    skip: Any = False
    present: list[int] | None = None


class PassedStep(NamedTuple):
    """A step that goes by: nothing of ours is done to it.

    Attributes:
        figures: of all gradients before the script clipped them, as `kernels.seal` gave them;
            None where nobody has read them yet.
        threshold: the `max_norm` of the script's own clip; inf for none.
        coef: norm after that clip over norm before.
    """

    figures: bytearray | None = None
    threshold: float = float("inf")
    coef: float = 1.0


def compare(stats: GradientStats, left: Any, dots: Any, clipped: Any) -> Applied:
    """Join per-tensor figures into one coefficient and one cosine.

    Args:
        stats: the figures before.
        left: norms after, ``[tensors]``, in units of the largest norm before.
        dots: inner products of before and after, in that unit squared.
        clipped: 0-d, whether anything changed.

    Returns:
        Coefficient and cosine; 1 where nothing changed.
    """
    return Applied(*stepping.compare(namespace(stats.norms), stats, left, dots, clipped))


def unit_of(stats: GradientStats) -> Any:
    """The largest norm; 1 where that is 0 or not finite. Squares of ratios to it are finite."""
    return stepping.unit_of(namespace(stats.norms), stats.norms)


def is_broken(stats: GradientStats) -> Any:
    """Whether an element is not finite, or the norm of finite ones is beyond float64; 0-d.

    The second cannot be clipped: there is no coefficient. It counts as the first.
    """
    broken = cast("torch.Tensor", stats.nonfinite).any()
    return broken | ~namespace(stats.norms).isfinite(stats.total_norm)
