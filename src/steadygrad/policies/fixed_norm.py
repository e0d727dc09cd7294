"""What methods share that hold norms under one threshold, the same at every step."""

from __future__ import annotations

from dataclasses import dataclass

from steadygrad.policies.base import Policy, require_norm_type, require_positive


@dataclass(frozen=True)
class ByFixedNorm(Policy):
    """A method with one threshold for p-norms.

    Args:
        max_norm: the threshold.
        p: which norm, 0.5 to inf.

    Raises:
        SpecError: a threshold that is not over 0, a p under 0.5.
    """

    max_norm: float
    p: float = 2.0

    def __post_init__(self) -> None:
        require_positive(self, "max_norm")
        require_norm_type(type(self).__name__, self.p)

    @property
    def norm_type(self) -> float:
        return self.p
