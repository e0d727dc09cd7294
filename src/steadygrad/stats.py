"""GradientStats: the currency between measuring and deciding.

A plain record of arrays of one array library (NumPy, torch, jax.numpy or
TensorFlow), so that a policy reads the same fields on a CPU, on a device
without synchronising, and under a tracer.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeGuard

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from steadygrad.typing import Array, Namespace

MAD_TO_SIGMA = 1.4826
"""A median absolute deviation times this is the standard deviation of a normal distribution."""


@dataclass(frozen=True)
class GradientStats:
    """What one read of a list of gradients tells.

    Attributes:
        names: one name a tensor, in the order measured.
        norms: p-norm of each tensor, shape ``[tensors]``, float64 where the device
            has it. Exact for finite tensors; inf or nan where the tensor holds one.
        max_abs: largest \\|g\\| among the finite elements, shape ``[tensors]``.
        nonfinite: number of NaN and inf elements, shape ``[tensors]``, integer.
        zeros: number of elements equal to zero, shape ``[tensors]``, integer.
        sizes: number of elements, one Python int a tensor.
        total_norm: p-norm over all tensors taken as one vector, before clipping; 0-d.
        norm_type: the p of the norms; ``inf`` for the largest magnitude.
        elsewhere: number of NaN and inf elements in tensors that only other ranks hold; 0-d.
        own: norm, and number of NaN and inf elements, of the pieces that this rank holds, before
            they were joined with the others', ``[2]``; None where it holds all.

    Example:
        >>> import numpy as np
        >>> s = GradientStats(("w",), np.array([5.0]), np.array([4.0]), np.array([0]),
        ...                   np.array([0]), (2,), np.float64(5.0), 2.0)
        >>> float(s.total_norm)
        5.0
    """

    names: tuple[str, ...]
    norms: Array
    max_abs: Array
    nonfinite: Array
    zeros: Array
    sizes: tuple[int, ...]
    total_norm: Array
    norm_type: float = 2.0
    elsewhere: Array | int = 0
    own: Array | None = None


def combine_norms(xp: Namespace, norms: Array, norm_type: float) -> Array:
    """Join per-tensor p-norms into the norm of the tensors taken as one vector.

    Scaled by the largest norm, so that it holds wherever the result itself is
    representable. A NaN among the norms gives NaN, else an inf gives inf.

    Args:
        xp: the array namespace of ``norms``.
        norms: shape ``[tensors]``, at least one tensor.
        norm_type: p of the norms, or ``inf``.

    Returns:
        The total norm, 0-d, in the dtype of ``norms``.

    Example:
        >>> import numpy as np
        >>> f"{combine_norms(np, np.array([3e200, 4e200]), 2.0):.6g}"
        '5e+200'
    """
    if norm_type == 2.0 and of_numpy(norms):
        return norms.dtype.type(_hypot(norms.tolist()))  # type: ignore[return-value]  # 0-d
    largest = xp.max(norms)  # NaN wins over inf in every namespace we serve
    if norm_type == float("inf"):
        return largest
    usable = xp.isfinite(largest) & (largest > 0)
    scale = xp.where(usable, largest, xp.ones_like(largest))
    ratios = xp.where(usable, norms / scale, xp.zeros_like(norms))
    if norm_type == 2.0:
        joined = scale * xp.sqrt(xp.sum(ratios * ratios))
    else:
        joined = scale * xp.sum(ratios**norm_type) ** (1.0 / norm_type)
    return xp.where(usable, joined, largest)


def combine_pieces(xp: Namespace, norms: Array, norm_type: float) -> Array:
    """Norms of tensors of which several ranks hold a piece each; see `combine_norms`.

    Args:
        xp: the array namespace of ``norms``.
        norms: of the pieces, shape ``[pieces, tensors]``.
        norm_type: p of the norms, or ``inf``.

    Returns:
        Norms of the whole tensors, shape ``[tensors]``.

    Example:
        >>> import numpy as np
        >>> combine_pieces(np, np.array([[3.0, 0.0], [4.0, 2.0]]), 2.0).tolist()
        [5.0, 2.0]
    """
    largest = xp.max(norms, axis=0)
    if norm_type == float("inf"):
        return largest
    usable = xp.isfinite(largest) & (largest > 0)
    scale = xp.where(usable, largest, xp.ones_like(largest))
    ratios = xp.where(usable, norms / scale, xp.zeros_like(norms))
    if norm_type == 2.0:
        joined = scale * xp.sqrt(xp.sum(ratios * ratios, axis=0))
    else:
        joined = scale * xp.sum(ratios**norm_type, axis=0) ** (1.0 / norm_type)
    return xp.where(usable, joined, largest)


def of_numpy(x: object) -> TypeGuard[NDArray[np.floating]]:
    """Whether an array or a scalar is NumPy's, told by name: NumPy need not be loaded."""
    return type(x).__module__ == "numpy"


def _hypot(norms: list[float]) -> float:
    """One call where the namespace's own takes nine, each slow once the caches are cold."""
    total = math.hypot(*norms)
    return math.nan if math.isinf(total) and any(map(math.isnan, norms)) else total


def describe_nonfinite(stats: GradientStats, step: int, most: int = 8) -> str:
    """Which tensors are not finite, and in how many elements.

    Example:
        >>> import numpy as np
        >>> from dataclasses import replace
        >>> bad = GradientStats(("w", "b"), np.ones(2), np.ones(2), np.array([3, 0]),
        ...                     np.zeros(2), (4, 1), np.float64("nan"), 2.0)
        >>> print(describe_nonfinite(bad, 7).partition(". ")[0])
        step 7: gradients are not finite: w (3 of 4 elements)
        >>> there = replace(bad, nonfinite=np.array([0, 0]), elsewhere=2)
        >>> print(describe_nonfinite(there, 7).partition(". ")[0])
        step 7: gradients are not finite: 2 elements of tensors that other ranks hold
    """
    counts = [int(c) for c in stats.nonfinite]
    rows = zip(stats.names, counts, stats.sizes, strict=True)
    lines = [f"{name} ({count} of {size} elements)" for name, count, size in rows if count]
    if stats.elsewhere > 0:
        lines.append(f"{int(stats.elsewhere)} elements of tensors that other ranks hold")
    lines = lines or ["all elements are, and their norm is beyond any float64"]
    more = f" and {len(lines) - most} more tensors" if len(lines) > most else ""
    return (
        f"step {step}: gradients are not finite: {', '.join(lines[:most])}{more}. "
        "To drop such steps instead, type on_nonfinite='skip'"
    )
