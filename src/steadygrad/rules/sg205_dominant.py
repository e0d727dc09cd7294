"""SG205: one tensor that makes up the whole norm."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from steadygrad.rules.advice import code
from steadygrad.rules.base import Rule, finding
from steadygrad.rules.finding import Finding
from steadygrad.rules.view import Array, View, columns_median, median, number, percent

SHARE = 0.9
STEEP = 20.0
"""Factor by which a typical element of it exceeds those of the other tensors."""


def check(view: View) -> Iterator[Finding]:
    table = view.healthy_norms
    owners = _owners(view)
    if not view.enough or len(set(owners)) < 3:
        return
    squares = np.nan_to_num(table) ** 2
    total = squares.sum(axis=1)
    names = np.array(owners)
    rows = squares[total > 0] / total[total > 0][:, None]
    shares = {owner: float(np.median(rows[:, names == owner].sum(axis=1))) for owner in set(owners)}
    if not len(rows):
        return
    top = max(shares, key=lambda owner: shares[owner])
    inside = names == top
    steep = _steepness(view, table, inside)
    if shares[top] >= SHARE and steep >= STEEP and _hurts(view):
        columns = np.flatnonzero(inside)
        largest = int(columns[np.argmax(np.median(rows[:, columns], axis=0))])
        yield _finding(view, largest, shares[top], steep)


def _hurts(view: View) -> bool:
    """Whether a clip by the total norm acts, or the loss suffers: alone, a share is no fault."""
    clipped = float((view.coef[view.usable] < 1).mean())
    return clipped > 0.2 or view.loss_trend.stalled or view.loss_trend.diverged


def _owners(view: View) -> list[str]:
    """The module of each tensor: a weight and its bias stand or fall together."""
    return [t.name.rpartition(".")[0] or t.name for t in view.tensors]


def _steepness(view: View, table: Array, inside: Array) -> float:
    sizes = np.array([max(1, int(np.prod(t.shape))) for t in view.tensors], dtype=np.float64)
    typical = columns_median(table) / np.sqrt(sizes)
    others = typical[~inside & (typical > 0)]
    return float(np.nanmax(typical[inside]) / np.median(others)) if others.size else 0.0


def _finding(view: View, top: int, share: float, steep: float) -> Finding:
    name = view.tensors[top].name
    clipped = float((view.coef[view.usable] < 1).mean())
    return finding(
        view,
        "SG205",
        "warning",
        0.8,
        f"{name}, with its module, is {percent(share)} of the squared gradient norm.",
        evidence=[
            f"Its typical element is {number(steep)} times that of the other tensors.",
            f"The coefficient is under 1 on {percent(clipped)} of the steps: a clip by the total "
            f"norm {'shrinks' if clipped else 'would shrink'} every other tensor by its measure.",
            f"The median norm is {number(median(view.norm[view.usable]))}.",
        ],
        steps=[int(view.step[0]), int(view.step[-1])],
        tensors=[name],
        causes=[
            "inputs or targets that are not normalised",
            "a scale, temperature or loss weight far out of the range of the rest",
            "an output layer without normalisation before it",
        ],
        fixes=[
            code(
                view,
                torch="x = (x - x.mean(0)) / (x.std(0) + 1e-6)  # normalise what enters it\n"
                'sg.attach(optimizer, clip="tensor-norm:1.0", model=model)  # each by itself',
                keras="keras.layers.Normalization()  # before the first layer\n"
                'sg.attach(optimizer, clip="tensor-norm:1.0")',
                jax="x = (x - x.mean(0)) / (x.std(0) + 1e-6)\n"
                'optimizer = sg.guard(optimizer, clip="tensor-norm:1.0")',
            )
        ],
        figures={"share": share, "steepness": steep},
    )


RULE = Rule("SG205", "one tensor that dominates the norm", check, supersedes=("SG401",))
