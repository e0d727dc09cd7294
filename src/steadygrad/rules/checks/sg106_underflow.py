"""SG106: float16 gradients too small to be represented: they become zero."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from steadygrad.robust import columns_median
from steadygrad.rules.advice import code
from steadygrad.rules.base import Rule, finding
from steadygrad.rules.evidence.dead import nothing_at_all
from steadygrad.rules.evidence.steps import Array
from steadygrad.rules.evidence.view import View
from steadygrad.rules.evidence.wording import number, percent
from steadygrad.rules.finding import Finding

NORMAL = 6.1e-5
"""The smallest normal float16; below it precision goes, at 6e-8 everything."""


def check(view: View) -> Iterator[Finding]:
    if not view.enough or nothing_at_all(view):
        return
    half = np.array([t.dtype == "float16" for t in view.tensors], dtype=bool)
    mixed = view.amp and not half.any()
    columns = np.flatnonzero(half) if half.any() else view.weights
    if not columns.size or not (half.any() or mixed):
        return
    zeros = columns_median(view.zeros[view.good][:, columns])
    largest = columns_median(view.figures("max_abs")[view.good][:, columns])
    tiny = (largest < NORMAL) & (zeros > 0.2)
    if half.any() and tiny.mean() >= 0.3:
        yield _finding(view, columns[tiny], zeros[tiny], largest[tiny], len(columns))


def _finding(view: View, columns: Array, zeros: Array, largest: Array, total: int) -> Finding:
    names = [view.tensors[i].name for i in columns[np.argsort(zeros)[::-1]]]
    scale = float(np.nanmedian(view.loss_scale))
    wanted = 2.0 ** np.floor(np.log2(1024 * NORMAL / max(float(np.max(largest)), 1e-12)))
    return finding(
        view,
        "SG106",
        "error" if float(np.median(zeros)) > 0.9 else "warning",
        0.9,
        f"float16 gradients underflow: {len(columns)} of {total} tensors are mostly too small to "
        "be represented.",
        evidence=[
            f"In them a median of {percent(float(np.median(zeros)))} of the elements is exactly "
            f"0, and the largest element is {number(float(np.max(largest)))}; float16 loses "
            "precision under 6.1e-5 and everything under 6e-8.",
            f"The loss scale is {number(scale)}.",
        ],
        steps=[int(view.step[0]), int(view.step[-1])],
        tensors=names[:8],
        causes=[
            "no loss scale, or one that is too small",
            "a loss averaged over so much that its gradient is tiny",
        ],
        fixes=[
            code(
                view,
                torch=f"scaler = torch.amp.GradScaler(init_scale={max(wanted, 2.0):g})\n"
                "scaler.scale(loss).backward(); scaler.step(optimizer); scaler.update()\n"
                "# or torch.autocast(device_type, dtype=torch.bfloat16): it has float32's range",
                keras="optimizer = keras.optimizers.LossScaleOptimizer(optimizer)",
                jax="nn.Dense(n, dtype=jnp.bfloat16, param_dtype=jnp.float32)  # float32's range",
            )
        ],
        figures={"zeros": float(np.median(zeros)), "largest": float(np.max(largest))},
    )


RULE = Rule("SG106", "float16 underflow", check, supersedes=("SG301", "SG302"))
