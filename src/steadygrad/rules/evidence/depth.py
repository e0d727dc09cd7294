"""Gradients through depth: one figure a layer, in forward order."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from steadygrad.robust import columns_median, median, order_agreement
from steadygrad.rules.evidence.steps import Array
from steadygrad.rules.evidence.tensors import parts
from steadygrad.rules.evidence.view import View

WORSE = 10.0
"""Factor by which the first layers' share of the gradient falls in a model that is wrecked."""
FAST = 0.02
"""Update over weight from which a first step may have done it."""
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


def profiles(view: View, table: Array, columns: Array) -> list[Profile]:
    """A profile of each chain of layers: networks side by side are no depth.

    Args:
        view: the run; where it does not tell its chains, the forward order is taken for one.
        table: norms, ``[rows, tensors]``; NaN where unusable.
        columns: which tensors, in forward order.

    Returns:
        Those of the chains that are long enough.
    """
    names = [view.tensors[i].name for i in columns]
    chains = [set(map(str, chain)) for chain in (view.info.get("loop") or {}).get("chains") or ()]
    parts = [
        columns[[name in chain for name in names]]
        for chain in chains
        if not chain.isdisjoint(names)
    ]
    fits = [depth_profile(view, table, part) for part in parts or [columns]]
    return [profile for profile in fits if profile is not None]


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


def wrecked(view: View) -> float:
    """Update over weight of the first steps, where they wrecked a model that began well; else 0.

    It normalises, so that depth is no fault of its own; at first its layers got gradients of like
    size, then the first ones got next to nothing, and the loss stood still.
    """
    _, ratios = view.sample("update_ratio")
    if len(ratios) < 3 or not len(view.weights) or not view.stuck or not view.enough:
        return 0.0
    if not any("Norm" in t.module for t in view.tensors):
        return 0.0
    columns = view.weights
    early = profiles(view, view.healthy_norms[:2], columns)
    late = profiles(view, view.live_norms[len(view.live_norms) // 2 :], columns)
    pace = median([median(row) for row in ratios[:3][:, columns]])
    fell = any(b.ratio > WORSE * a.ratio for a, b in zip(early, late, strict=False))
    return pace if fell and pace > FAST else 0.0


def biases(view: View) -> Array:
    """Columns of the biases of linear and convolution layers: the backward signal itself."""
    module = ("Linear", "Conv", "Dense")
    is_bias = [len(t.shape) == 1 and parts(t)[-1].startswith("bias") for t in view.tensors]
    named = [not t.module or any(m in t.module for m in module) for t in view.tensors]
    return np.flatnonzero(np.logical_and(is_bias, named))
