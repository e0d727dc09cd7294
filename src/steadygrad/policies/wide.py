"""Half-precision tensors are computed with in float32 and rounded back once."""

from __future__ import annotations

from typing import Any


def wide(xp: Any, x: Any) -> Any:
    """``x`` in float32 at least; float64 and complex arrays stay as they are."""
    kept = any(kind in str(x.dtype) for kind in ("float32", "64", "complex"))
    return x if kept else xp.astype(x, xp.float32)


def same_dtype(xp: Any, x: Any, like: Any) -> Any:
    """``x`` rounded to the dtype of ``like``."""
    return x if x.dtype == like.dtype else xp.astype(x, like.dtype)
