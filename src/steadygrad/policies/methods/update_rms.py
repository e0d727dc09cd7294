"""StableAdamW's update clipping: by the root mean square of the update."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from steadygrad.policies.base import require_positive
from steadygrad.policies.checks import require_share
from steadygrad.policies.second_moment import BySecondMoment
from steadygrad.policies.wide import same_dtype, wide

if TYPE_CHECKING:
    from steadygrad.typing import Array, Namespace, Number


@dataclass(frozen=True)
class UpdateRMSClip(BySecondMoment):
    """Divide a tensor's gradient by ``max(1, RMS / limit)`` of the update it would make.

    ``RMS = sqrt(mean(g^2 / max(u, eps^2)))`` with u the bias-corrected second moment that
    this step would lead to: ``u = (beta2 * v + (1 - beta2) * g^2) / (1 - beta2^t)``. It is
    1 while gradients keep their size and grows when v lags behind them.

    StableAdamW divides the learning rate of the tensor by that figure, which leaves Adam's
    moments to take in the whole spike; here the gradient is divided, so the moments see
    the lowered one. With weight decay tied to the learning rate the two differ there too.
    An optimizer without a second moment is left alone, as is the first step.

    Args:
        limit: RMS from which the gradient is lowered.
        beta2: the optimizer's second-moment smoothing.
        eps: the optimizer's epsilon.

    Raises:
        SpecError: a parameter out of its range.

    Example:
        >>> import numpy as np
        >>> UpdateRMSClip().transform(np, np.array([10.0]), second_moment=np.array([1.0]),
        ...                           step=10_000)
        array([1.04835566])

    References:
        Wortsman et al. Stable and low-precision training for large-scale vision-language
        models. NeurIPS 2023, algorithm 2. The figure is Adafactor's (Shazeer, Stern, 2018).
    """

    name: ClassVar[str] = "update-rms"
    examples: ClassVar[tuple[str, ...]] = ("update-rms",)
    limit: float = 1.0
    beta2: float = 0.999
    eps: float = 1e-8

    def __post_init__(self) -> None:
        require_positive(self, "limit", "eps")
        require_share(self, "beta2")

    def transform(
        self,
        xp: Namespace,
        grad: Array,
        *,
        second_moment: Array | None = None,
        step: Number | None = None,
        **beside: Number | None,
    ) -> Array:
        if second_moment is None or step is None:
            return grad
        gradient, v = wide(xp, grad), wide(xp, second_moment)
        old = xp.sqrt(v) * self.beta2**0.5
        new = xp.abs(gradient) * (1.0 - self.beta2) ** 0.5
        top = xp.maximum(old, new)  # scaled, so that no square overflows
        unit = xp.where(top > 0, top, xp.ones_like(top))
        root = unit * xp.sqrt((old / unit) ** 2 + (new / unit) ** 2)
        root = root / (1.0 - self.beta2 ** (step + 1)) ** 0.5
        ratios = xp.abs(gradient) / xp.clip(root, self.eps, float("inf"))
        largest = xp.max(ratios)
        scale = xp.where(largest > 0, largest, xp.ones_like(largest))
        rms = scale * xp.sqrt(xp.mean((ratios / scale) ** 2))
        one = xp.ones_like(rms)
        coef = xp.where(rms > self.limit, self.limit / xp.where(rms > 0, rms, one), one)
        return same_dtype(xp, gradient * coef, grad)
