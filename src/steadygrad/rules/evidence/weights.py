"""When weights stopped being finite, and whether gradients had a part in it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from steadygrad.rules.evidence.view import View


def _after_its_step(view: View, step: int) -> bool:
    """Whether most gradients of that step are finite, so that its weights were when it began.

    Weights that are updated by hand are sampled when their step is over.
    """
    place = np.flatnonzero(view.step[view.rows_read] == step)
    if not len(place) or not view.broken[view.rows_read][place[0]]:
        return False
    counts, norms = view.figures("nonfinite")[place[0]], view.norms[place[0]]
    return bool(((counts == 0) & np.isfinite(norms)).mean() > 0.5)


@dataclass(frozen=True)
class Broken:
    """The first sampled step at which weights are not finite.

    Attributes:
        step: its number.
        last_good: the last sampled step at which all were finite; -1 where there was none.
        names: the broken tensors.
        norms: of the gradients applied in between, finite ones only.
        by_update: whether weights were finite before, and every gradient in between was too.
    """

    step: int
    last_good: int
    names: list[str]
    norms: list[float]
    by_update: bool


def broken_weights(view: View) -> Broken | None:
    """The story of weights that are not finite; None where they are, or gradients broke first."""
    steps, norms = view.sample("weight_norm")
    if not len(steps):
        return None
    bad = np.isinf(norms)
    rows = np.flatnonzero(bad.any(axis=1))
    limit = float(view.step[view.first_broken]) if view.broken.any() else np.inf
    if not rows.size or steps[rows[0]] > limit or _after_its_step(view, int(steps[rows[0]])):
        return None
    row = int(rows[0])
    step = int(steps[row])
    last_good = int(steps[row - 1]) if row else -1
    between = (view.step >= last_good) & (view.step < step)
    names = [view.tensors[i].name for i in np.flatnonzero(bad[row])]
    finite = bool(between.any()) and not view.broken[between].any()
    by_update = last_good >= 0 and finite
    return Broken(step, last_good, names, view.norm[between].tolist(), by_update)
