"""AGC: clipping each unit's gradient by the norm of its own weights."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, ClassVar

from steadygrad.errors import UsageError
from steadygrad.policies.base import (
    Decision,
    Policy,
    State,
    constant,
    no_threshold,
    require_positive,
)
from steadygrad.policies.checks import require_choice
from steadygrad.policies.methods.none import NoClip
from steadygrad.policies.wide import same_dtype, wide
from steadygrad.stats import GradientStats

if TYPE_CHECKING:
    from steadygrad.typing import Array, Namespace, Number


@dataclass(frozen=True)
class AGC(Policy):
    """Scale each unit's gradient so that ``|G_i| <= clip * max(|W_i|, eps)``.

    A unit is what feeds one output: with ``axes=timm`` all axes but the first (the layout
    of PyTorch), with ``axes=paper`` axis 0 of matrices and axes 0 to 2 of 4-D kernels (the
    layout of the paper's JAX code, which knows no 5-D kernels), with ``axes=optax`` the
    same and axes 0 to 3 of 5-D kernels. Vectors and scalars are one unit.

    Computed in float32 (float64 for float64 gradients) and rounded once. There is no
    threshold on the norm, so the recorded one is inf.

    Args:
        clip: largest norm of a unit's gradient, relative to its weights'.
        eps: least norm that weights count with, so that zero-initialised ones can move.
        exempt: name patterns, joined by ``|``, left unclipped; the paper exempts the
            final classifier: ``exempt=head.*|fc.*``.
        axes: ``timm``, ``paper`` or ``optax``.

    Raises:
        SpecError: a parameter out of its range.

    Example:
        >>> import numpy as np
        >>> w, g = np.array([[3.0, 4.0], [0.0, 0.0]]), np.array([[6.0, 8.0], [3.0, 4.0]])
        >>> AGC(0.1).transform(np, g, weight=w)
        array([[3.e-01, 4.e-01],
               [6.e-05, 8.e-05]])

    References:
        Brock, De, Smith, Simonyan. High-Performance Large-Scale Image Recognition Without
        Normalization. ICML 2021, equation 3.
    """

    name: ClassVar[str] = "agc"
    examples: ClassVar[tuple[str, ...]] = ("agc:0.01",)
    clip: float = 0.01
    eps: float = 1e-3
    exempt: str = ""
    axes: str = "timm"

    def __post_init__(self) -> None:
        require_positive(self, "clip", "eps")
        require_choice(self, "axes", ("timm", "paper", "optax"))

    @property
    def usual_clip_rate(self) -> float:
        return 1.0

    @property
    def elementwise(self) -> bool:
        return True

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"weight"})

    def _exempts(self, name: str) -> bool:
        # without the test, "" would exempt a bare array, whose name may be empty
        return any(p and fnmatchcase(name, p) for p in self.exempt.split("|"))

    def for_tensor(self, name: str) -> Policy:
        return NoClip() if self._exempts(name) else self

    def decide(self, xp: Namespace, state: State, stats: GradientStats) -> tuple[State, Decision]:
        return state, no_threshold(xp, stats)

    def touches(self, xp: Namespace, stats: GradientStats) -> Array:
        governed = constant(xp, [not self._exempts(n) for n in stats.names], stats.norms)
        if stats.norm_type > 2:  # then a tensor's norm is no bound on its units'
            large: Array = stats.max_abs > 0
        else:
            large = stats.norms > self.clip * self.eps
        return governed & large

    def transform(
        self, xp: Namespace, grad: Array, *, weight: Array | None = None, **beside: Number | None
    ) -> Array:
        assert weight is not None  # `needs` asks for it
        axes = unit_axes(self.axes, tuple(grad.shape))
        gradient, weights = wide(xp, grad), wide(xp, weight)
        most = self.clip * xp.clip(unit_norms(xp, weights, axes), self.eps, float("inf"))
        norms = unit_norms(xp, gradient, axes)
        over = norms > most
        one = xp.ones_like(norms)
        coef = xp.where(over, most / xp.where(over, norms, one), one)
        return same_dtype(xp, gradient * coef, grad)


def unit_axes(axes: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The axes that a unit's norm runs over.

    Args:
        axes: ``timm``, ``paper`` or ``optax``.
        shape: the tensor's.

    Raises:
        UsageError: a tensor of more dimensions than the method defines units for.

    Example:
        >>> unit_axes("timm", (8, 3, 5, 5)), unit_axes("optax", (5, 5, 3, 8))
        ((1, 2, 3), (0, 1, 2))
    """
    ndim = len(shape)
    vector = ndim if axes == "timm" else sum(n != 1 for n in shape)
    if vector <= 1:
        return tuple(range(ndim))
    if axes == "timm":
        return tuple(range(1, ndim))
    if ndim > (4 if axes == "paper" else 5):
        raise UsageError(
            f"agc with axes={axes} defines no units for a tensor of shape {shape}; type axes=timm "
            "where the first axis counts outputs, or leave it out: exempt=PATTERN"
        )
    return (0,) if ndim <= 3 else tuple(range(ndim - 1))


def unit_norms(xp: Namespace, x: Array, axes: tuple[int, ...]) -> Array:
    """2-norms over ``axes``, which stay with length 1; scaled, so that no finite norm overflows."""
    magnitude = xp.abs(x)
    if not axes:
        return magnitude
    top = xp.max(magnitude, axis=axes, keepdims=True)
    scale = xp.where(xp.isfinite(top) & (top > 0), top, xp.ones_like(top))
    ratios = magnitude / scale
    return scale * xp.sqrt(xp.sum(ratios * ratios, axis=axes, keepdims=True))
