"""Whether an optimizer's updates depend on the size of its gradients, told from both sizes."""

from __future__ import annotations

import numpy as np

from steadygrad.robust import median
from steadygrad.rules.evidence.view import View

FEWEST = 3
"""Steps, and tensors of each, below which nothing is told."""
EVEN = 1.0
"""Spread of the logarithms of the tensors' updates over the roots of their sizes; less is alike."""
APART = 0.7
"""Times that spread that update over gradient has at least, where gradients do not tell it."""


def move_alike(view: View) -> bool:
    """Whether elements move about as far as one another, whatever their gradients.

    So they do with Adam and its kin. Otherwise a tensor with ten times the gradient of another one
    moves ten times as far. In the trainings of the corpus the spread over the tensors of update
    over gradient is at most 0.2 times that of update over the root of a tensor's size with SGD, and
    at least 0.8 times with Adam.

    Returns:
        False also where too few updates were sampled.
    """
    steps, ratios = view.sample("update_ratio")
    weighed, sizes = view.sample("weight_norm")
    read = view.step[view.rows_read]
    root = np.sqrt([max(1, int(np.prod(t.shape))) for t in view.tensors])
    by_gradient, by_size = [], []
    for place, step in enumerate(steps):
        row, weight = np.flatnonzero(read == step), np.flatnonzero(weighed == step)
        if not len(row) or not len(weight) or not view.good[row[0]]:
            continue
        with np.errstate(divide="ignore", invalid="ignore"):
            update = np.log(ratios[place]) + np.log(sizes[weight[0]])
            gradient = np.log(view.norms[row[0]])
        finite = np.isfinite(update) & np.isfinite(gradient)
        if finite.sum() >= FEWEST:
            by_gradient.append(float(np.std((update - gradient)[finite])))
            by_size.append(float(np.std((update - np.log(root))[finite])))
    if len(by_size) < FEWEST:
        return False
    even = median(np.array(by_size))
    return even < EVEN and median(np.array(by_gradient)) > APART * even
