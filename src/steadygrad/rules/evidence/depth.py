"""Gradients through depth: one figure a layer, in forward order."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from steadygrad.rules.evidence.view import Array, View, columns_median, order_agreement, parts

LAYERS = 4
"""Layers below which depth says nothing."""


@dataclass(frozen=True)
class Profile:
    """Gradient norms layer by layer.

    Attributes:
        columns: the tensors, in forward order, as columns of the view.
        norms: median norm of each, finite and over 0.
        agreement: Kendall's tau with depth: 1 where the last layers have the largest.
        ratio: last third's median norm over the first third's.
    """

    columns: Array
    norms: Array
    agreement: float
    ratio: float

    @property
    def per_layer(self) -> float:
        """Factor by which a gradient changes with each layer on its way back."""
        between = max(1, len(self.norms) - len(self.norms) // 3 - 1)
        return float((1 / self.ratio) ** (1 / between)) if self.ratio > 0 else math.nan


def depth_profile(view: View, table: Array, columns: Array) -> Profile | None:
    """The profile of some tensors, or None where there are fewer than `LAYERS` of them.

    Args:
        view: the run.
        table: norms, ``[rows, tensors]``; NaN where unusable.
        columns: which tensors, in forward order.

    Returns:
        The profile.
    """
    norms = columns_median(table[:, columns])
    seen = np.isfinite(norms) & (norms > 0)
    if seen.sum() < LAYERS:
        return None
    columns, norms = columns[seen], norms[seen]
    third = max(1, len(norms) // 3)
    logs = np.log(norms)
    ratio = math.exp(min(700.0, float(np.median(logs[-third:]) - np.median(logs[:third]))))
    return Profile(columns, norms, order_agreement(norms), ratio)


def biases(view: View) -> Array:
    """Columns of the biases of linear and convolution layers: the backward signal itself."""
    module = ("Linear", "Conv", "Dense")
    found = [len(t.shape) == 1 and parts(t)[-1].startswith("bias") for t in view.tensors]
    named = [not t.module or any(m in t.module for m in module) for t in view.tensors]
    return np.flatnonzero(np.logical_and(found, named))
