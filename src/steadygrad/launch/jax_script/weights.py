"""The weights of a JAX training before its first step, as the script hands them to `init`.

Later ones are inside of compiled code that knows no step's number; to read them at each step would
cost as much as the gradients.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import jax
import numpy as np
from numpy.typing import NDArray

from steadygrad.launch.jax_script.internals import is_traced
from steadygrad.runlog.sampled import stride

MOST_ELSEWHERE = 1 << 20
"""Elements of a tensor that are brought to the host from another device."""

Floats = NDArray[np.float64]
Start: TypeAlias = tuple[Floats, Floats]
"""Norms and standard deviations of all tensors."""


def weights_of(leaves: Sequence[jax.Array]) -> Start | None:
    """Read weights on the host.

    Args:
        leaves: floating arrays.

    Returns:
        Their norms, and standard deviations of elements evenly spread; NaN for what is too large
        to be brought to the host. None for what is traced, or lies on other hosts.
    """
    if any(is_traced(leaf) or not hasattr(leaf, "__array__") for leaf in leaves):
        return None  # shapes alone, by jax.eval_shape
    if not all(getattr(leaf, "is_fully_addressable", True) for leaf in leaves):
        return None
    figures = np.array([_figures(leaf) for leaf in leaves], np.float64).reshape(-1, 2)
    return figures[:, 0], figures[:, 1]


def _figures(leaf: jax.Array) -> tuple[float, float]:
    here = not isinstance(leaf, jax.Array) or all(d.platform == "cpu" for d in leaf.devices())
    if leaf.size == 0 or (not here and leaf.size > MOST_ELSEWHERE):
        return np.nan, np.nan
    flat = np.asarray(leaf).ravel()
    wide = flat.astype(np.complex128 if flat.dtype.kind == "c" else np.float64)
    norm, deviation = float(np.linalg.norm(wide)), float(np.std(wide[:: stride(wide.size)]))
    # NaN means "not measured" in the file: what is not finite is written as inf
    return (norm if norm == norm else np.inf), deviation
