"""SPAM's spike-aware clipping of single elements."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from steadygrad.policies.base import require_positive
from steadygrad.policies.checks import require_count
from steadygrad.policies.second_moment import BySecondMoment
from steadygrad.policies.wide import same_dtype, wide

if TYPE_CHECKING:
    from steadygrad.typing import Array, Namespace, Number


@dataclass(frozen=True)
class SPAM(BySecondMoment):
    """Lower the elements whose square exceeds ``theta`` times their second moment.

    Where ``g^2 > theta * v``: ``g = sign(g) * sqrt(theta * v)``, with v the optimizer's
    running mean of squares before this step, as it stores it (without bias correction).

    Elements whose v is 0 are left alone: they have had no gradient yet, and setting them
    to 0 would keep them so for ever. Nothing is clipped before v has seen ``after``
    gradients. The paper's other half, resetting Adam's momentum every 500 steps with a
    learning-rate warm-up behind it, changes the optimizer and not the gradient, and is
    not part of this method. An optimizer without a second moment is left alone.

    Args:
        theta: how many times its second moment a squared element may be.
        after: number of gradients that v must have seen.

    Raises:
        SpecError: a parameter out of its range.

    Example:
        >>> import numpy as np
        >>> SPAM(4.0).transform(np, np.array([9.0, -9.0, 1.0, 5.0]),
        ...                     second_moment=np.array([1.0, 1.0, 1.0, 0.0]), step=100)
        array([ 2., -2.,  1.,  5.])

    References:
        Huang et al. SPAM: Spike-Aware Adam with Momentum Reset for Stable LLM Training.
        ICLR 2025, equation 1.
    """

    name: ClassVar[str] = "spam"
    examples: ClassVar[tuple[str, ...]] = ("spam",)
    theta: float = 5000.0
    after: int = 20

    def __post_init__(self) -> None:
        require_positive(self, "theta")
        require_count(self, "after", least=0)

    @property
    def usual_clip_rate(self) -> float:
        return 1.0

    def transform(
        self,
        xp: Namespace,
        grad: Array,
        *,
        second_moment: Array | None = None,
        step: Number | None = None,
        **beside: Number | None,
    ) -> Array:
        if second_moment is None:
            return grad
        gradient, v = wide(xp, grad), wide(xp, second_moment)
        most = math.sqrt(self.theta) * xp.sqrt(v)
        over = (xp.abs(gradient) > most) & (v > 0)
        if step is not None:
            over = over & (step >= self.after)
        return same_dtype(xp, xp.where(over, xp.sign(gradient) * most, gradient), grad)
