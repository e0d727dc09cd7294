"""SG108: updates below half a unit in the last place of the weights' dtype: rounded away."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from steadygrad.robust import columns_median, median
from steadygrad.rules.advice import code
from steadygrad.rules.base import Rule, finding
from steadygrad.rules.evidence.loop import reckoned_paces
from steadygrad.rules.evidence.steps import Array
from steadygrad.rules.evidence.view import View
from steadygrad.rules.evidence.wording import number, percent
from steadygrad.rules.finding import Finding

HALF_UNIT = {"bfloat16": 2.0**-9, "float16": 2.0**-12}
"""Half a unit in the last place, over the weight: it lies between this and half of it."""
MOST_LOST, SOME_LOST = 0.25, 0.5
"""Parts of it: what is measured is what arrived, and weights smaller than the rest have a smaller
unit. Beside the same training in float32, half of the motion or more is gone under the first, and
next to nothing from the second on (measured with SGD and Adam on three models)."""


def check(view: View) -> Iterator[Finding]:
    steps, ratios = view.sample("update_ratio")
    short = [i for i in view.weights if view.tensors[i].dtype in HALF_UNIT]
    if not short or not view.enough or 0 < len(steps) < 3:
        return
    columns = np.array(short, dtype=np.int64)
    paces = columns_median(ratios[:, columns]) if len(steps) else reckoned_paces(view)[columns]
    limits = np.array([HALF_UNIT[view.tensors[i].dtype] for i in columns])
    lost = np.isfinite(paces) & (paces < MOST_LOST * limits)
    moves = (paces > SOME_LOST * limits).any()
    if lost.mean() > 0.5 and not moves and _suffers(view):
        yield _finding(view, columns[lost], paces[lost], float(limits[lost][0]))


def _suffers(view: View) -> bool:
    """Whether the loss stays up: where it falls, enough of each update survives rounding."""
    trend = view.loss_trend
    return trend.recorded and not trend.signed and trend.fall < 0.5 and median(view.lr) != 0


def _finding(view: View, columns: Array, paces: Array, limit: float) -> Finding:
    names = [view.tensors[i].name for i in columns]
    dtype = view.tensors[columns[0]].dtype
    return finding(
        view,
        "SG108",
        "error" if view.loss_trend.stalled else "warning",
        0.93,
        f"Updates are rounded away: the weights are {dtype}, and a step changes them by "
        f"{number(float(np.median(paces)))} of their size, under half a unit in the last place.",
        evidence=[
            f"Half a unit in the last place of {dtype} is {number(limit / 2)} to {number(limit)} "
            f"of the weight; the median update is under a quarter of it in "
            f"{percent(len(names) / len(view.weights))} of the matrices, {names[0]} among them.",
            view.loss_sentence,
        ],
        steps=[int(view.step[0]), int(view.step[-1])],
        tensors=names[:8],
        causes=[
            f"the weights themselves are kept in {dtype}, and the learning rate is small",
        ],
        fixes=[
            code(
                view,
                torch="model.float()  # weights in float32, before the optimizer is made\n"
                'with torch.autocast("cuda", dtype=torch.bfloat16):  # short in computing only\n'
                "    loss = loss_fn(model(x), y)",
                keras='keras.mixed_precision.set_global_policy("mixed_bfloat16")',
                jax="params = jax.tree.map(lambda p: p.astype(jnp.float32), params)\n"
                "# before optimizer.init; Flax: dtype=jnp.bfloat16, param_dtype=jnp.float32",
            )
        ],
        figures={"update_ratio": float(np.median(paces)), "half_unit": limit},
    )


RULE = Rule("SG108", "updates rounded away", check, supersedes=("SG301", "SG605", "SG106"))
