"""Half-precision tensors are computed with in float32 and rounded back once."""

from __future__ import annotations

from typing import Any


def cast(xp: Any, x: Any, dtype: Any) -> Any:
    """Convert to a dtype; NumPy refuses scalars in its `astype` before 2.1, and has none in 1.

    NumPy is told by name: specs are read before a script starts, which must not find it loaded.

    Example:
        >>> import numpy as np
        >>> cast(np, np.int64(3), np.float64)
        np.float64(3.0)
    """
    return x.astype(dtype) if type(x).__module__ == "numpy" else xp.astype(x, dtype)


def wide(xp: Any, x: Any) -> Any:
    """``x`` in float32 at least; float64 and complex arrays stay as they are."""
    kept = any(kind in str(x.dtype) for kind in ("float32", "64", "complex"))
    return x if kept else cast(xp, x, xp.float32)


def same_dtype(xp: Any, x: Any, like: Any) -> Any:
    """``x`` rounded to the dtype of ``like``."""
    return x if x.dtype == like.dtype else cast(xp, x, like.dtype)
