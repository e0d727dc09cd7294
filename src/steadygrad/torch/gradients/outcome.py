"""What is left of the gradients after acting: its norm, and how far the direction turned."""

from __future__ import annotations

from typing import Any, NamedTuple

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
    """The largest norm, or 1 where that is no unit: squares of ratios to it cannot overflow."""
    return stepping.unit_of(namespace(stats.norms), stats.norms)
