"""SG304: sigmoids and tanhs at their flat ends."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from steadygrad.robust import columns_median
from steadygrad.rules.advice import code, jax_weights, lower_lr
from steadygrad.rules.base import Rule, finding
from steadygrad.rules.evidence.view import View
from steadygrad.rules.evidence.wording import number, percent
from steadygrad.rules.finding import Finding

FLAT = 0.6
"""Share of a layer's outputs at the flat ends from which it counts as saturated."""
ALL = 0.95
"""The same where the loss falls all the same, by what the last layer can do alone."""


def check(view: View) -> Iterator[Finding]:
    steps, flat = view.sample("activation_saturated")
    if not len(steps) or not view.enough:
        return
    late = columns_median(flat[len(flat) // 2 :])
    least = FLAT if _suffers(view) else ALL
    columns = np.flatnonzero(late >= least)
    if columns.size and columns.size >= 0.3 * np.isfinite(late).sum():
        names = [view.tensors[i].name for i in columns]
        yield _finding(view, names, float(late[columns].max()), float(np.nanmax(flat[0])))


def _suffers(view: View) -> bool:
    trend = view.loss_trend
    return not trend.recorded or trend.stalled or trend.diverged


def _finding(view: View, names: list[str], share: float, first: float) -> Finding:
    trend = view.loss_trend
    when = "from the start" if first >= FLAT else "in the course of training"
    loss = (
        [f"The loss stalls: {number(trend.start)} at the start, {number(trend.lowest)} at best."]
        if trend.recorded
        else []
    )
    return finding(
        view,
        "SG304",
        "error" if trend.recorded else "warning",
        0.9 if trend.recorded else 0.65,
        f"Activations are saturated {when}: {percent(share)} of the outputs behind {names[0]} are "
        "at the flat ends.",
        evidence=[f"Layers of which most outputs are flat: {', '.join(names[:6])}.", *loss],
        steps=[int(view.step[0]), int(view.step[-1])],
        tensors=names[:8],
        causes=[
            "initial weights or inputs too large",
            "a learning rate so high that the first steps push the units to their ends",
        ],
        fixes=[
            code(
                view,
                torch="nn.init.xavier_uniform_(layer.weight, gain=nn.init.calculate_gain('tanh'))\n"
                "nn.init.zeros_(layer.bias)\n"
                "x = (x - mean) / std  # inputs of unit variance",
                keras='keras.layers.Dense(n, "tanh", kernel_initializer="glorot_uniform")',
                jax=jax_weights(view, "xavier_uniform"),
            ),
            lower_lr(view),
        ],
        figures={"share": share},
    )


RULE = Rule("SG304", "saturated activations", check, supersedes=("SG301", "SG302"))
