"""SG305: a recurrent matrix that lets nothing of the gradient reach the early time steps."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from steadygrad.rules.advice import code
from steadygrad.rules.base import Rule, finding
from steadygrad.rules.evidence.view import View, columns_median, is_cell, median, number
from steadygrad.rules.finding import Finding

LOST = float(np.finfo(np.float32).eps)
"""Share of the gradient under which the early steps are rounded away beside the late ones."""
GATED = ("LSTM", "GRU")
"""Cells that carry the gradient past their matrix."""


def check(view: View) -> Iterator[Finding]:
    steps, radii = view.sample("spectral_radius")
    _, lengths = view.sample("recurrent_steps")
    if not len(steps) or not len(lengths) or not view.enough or not _held_back(view):
        return
    radius, length = columns_median(radii), columns_median(lengths)
    for column in np.flatnonzero(np.isfinite(radius) & np.isfinite(length)):
        gated = any(cell in view.tensors[column].module for cell in GATED)
        reached = length[column] * np.log(max(float(radius[column]), 1e-9))
        if (
            not gated
            and is_cell(view.tensors[column])
            and length[column] > 1
            and reached < np.log(LOST)
        ):
            yield _finding(view, int(column), float(radius[column]), int(length[column]))


def _held_back(view: View) -> bool:
    """Whether the loss stalls, or fell at once to where it then stayed: what a constant gives."""
    return view.stuck or _only_a_constant(view)


def _only_a_constant(view: View) -> bool:
    trend = view.loss_trend
    if not trend.known or trend.signed or trend.stalled:
        return False
    late = view.loss[len(view) // 5 :]
    half = len(late) // 2
    first, second = median(late[:half]), median(late[half:])
    return bool(first - second < 0.03 * abs(first) and trend.end > 0.1 * abs(trend.first))


def _finding(view: View, column: int, radius: float, length: int) -> Finding:
    name, trend = view.tensors[column].name, view.loss_trend
    power = length * np.log10(max(radius, 1e-9))
    left = number(radius**length) if power > -300 else f"1e{power:.0f}"
    span = int(np.log(LOST) / np.log(max(radius, 1e-9)))
    return finding(
        view,
        "SG305",
        "warning" if view.stuck else "info",
        min(0.92, 0.75 + 0.02 * (np.log10(LOST) - power)),  # the further below, the surer
        f"Gradients vanish through time: {name} has a spectral radius of {number(radius)}, and "
        f"{length} time steps leave {left} of the gradient.",
        evidence=[
            f"{number(radius)} to the power {length} is {left}; float32 keeps {number(LOST)}: what "
            f"lies more than {span} time steps back is not learned from.",
            f"The loss stalls: {number(trend.start)} at first, {number(trend.end)} at the end."
            if view.stuck
            else f"The loss fell to {number(trend.middle)} at once and stayed there "
            f"({number(trend.end)} at the end): as far as a constant prediction may take it.",
        ],
        steps=[int(view.step[0]), int(view.step[-1])],
        tensors=[name],
        causes=[
            "the recurrent matrix is initialised too small for the length of the sequences",
            "a plain recurrent cell where gates are needed",
        ],
        fixes=[
            code(
                view,
                torch=f"nn.init.orthogonal_(model.{name})  # spectral radius 1\n"
                "# or gates: nn.LSTM / nn.GRU in place of nn.RNN",
                keras='keras.layers.SimpleRNN(n, recurrent_initializer="orthogonal")\n'
                "# or gates: keras.layers.LSTM(n)",
                jax="nn.SimpleCell(n, recurrent_kernel_init=nn.initializers.orthogonal())",
            ),
            "# Clipping does nothing here: it can only make a gradient smaller.",
        ],
        figures={"radius": radius, "length": length, "log10_product": power},
    )


RULE = Rule("SG305", "gradients that vanish through time", check)
