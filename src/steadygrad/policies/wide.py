"""Half precision is computed with in float32 and rounded once; and what NumPy 1 calls otherwise."""

from __future__ import annotations

from typing import TYPE_CHECKING

from steadygrad.stats import of_numpy

if TYPE_CHECKING:
    from collections.abc import Sequence

    from steadygrad.typing import Array, DType, Namespace


def cast(xp: Namespace, x: Array, dtype: DType) -> Array:
    """Convert to a dtype; NumPy refuses scalars in its `astype` before 2.1, and has none in 1.

    NumPy is told by name: specs are read before a script starts, which must not find it loaded.

    Example:
        >>> import numpy as np
        >>> cast(np, np.int64(3), np.float64)
        np.float64(3.0)
    """
    if of_numpy(x):
        return x.astype(dtype)  # type: ignore[call-overload, no-any-return]
    return xp.astype(x, dtype)


def concat(xp: Namespace, arrays: Sequence[Array], axis: int = 0) -> Array:
    """Join arrays along an axis that they have; NumPy before 2.0 has another name for it.

    Args:
        xp: their namespace.
        arrays: one or more, of one shape but for that axis.
        axis: its number.

    Returns:
        One array.

    Example:
        >>> import numpy as np
        >>> concat(np, [np.ones(1), np.zeros(2)])
        array([1., 0., 0.])
    """
    join = next(getattr(xp, name) for name in ("concat", "concatenate") if hasattr(xp, name))
    return join(arrays, axis=axis)  # type: ignore[no-any-return]


def wide(xp: Namespace, x: Array) -> Array:
    """``x`` in float32 at least; float64 and complex arrays stay as they are."""
    is_wide = any(kind in str(x.dtype) for kind in ("float32", "64", "complex"))
    return x if is_wide else cast(xp, x, xp.float32)


def same_dtype(xp: Namespace, x: Array, like: Array) -> Array:
    """``x`` rounded to the dtype of ``like``."""
    return x if x.dtype == like.dtype else cast(xp, x, like.dtype)
