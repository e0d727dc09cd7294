"""What is left of the gradients after acting: its norm, and how far the direction turned."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from steadygrad.stats import GradientStats, combine_norms
from steadygrad.torch.measuring import namespace


@dataclass(frozen=True)
class Applied:
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
    xp = namespace(stats.norms)
    before = combine_norms(xp, stats.norms / unit_of(stats), stats.norm_type)
    after = combine_norms(xp, left, stats.norm_type)
    one = xp.ones_like(before)
    product = before * after
    cosine = xp.sum(dots) / xp.where(product > 0, product, one)
    if stats.norm_type != 2.0:  # the angle is a matter of 2-norms
        cosine = one * float("nan")
    changed = clipped & (before > 0)
    return Applied(
        coef=xp.where(changed, after / xp.where(changed, before, one), one),
        cosine=xp.where(changed & (product > 0), xp.clip(cosine, -1.0, 1.0), one),
        clipped=clipped,
    )


def unit_of(stats: GradientStats) -> Any:
    """The largest norm, or 1 where that is no unit: squares of ratios to it cannot overflow."""
    xp = namespace(stats.norms)
    largest = xp.max(stats.norms)
    usable = xp.isfinite(largest) & (largest > 0)
    return xp.where(usable, largest, xp.ones_like(largest))
