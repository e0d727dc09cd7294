"""SG204: a recurrent matrix that multiplies gradients at every time step."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from steadygrad.rules.advice import code, hold_norm
from steadygrad.rules.base import Rule, finding
from steadygrad.rules.evidence.breaks import first_break
from steadygrad.rules.evidence.view import View, is_cell, median, number, order_agreement, percent
from steadygrad.rules.finding import Finding

GATED = ("LSTM", "GRU")
"""Cells whose gates, not their recurrent matrix alone, carry the gradient."""


def check(view: View) -> Iterator[Finding]:
    steps, radii = view.sample("spectral_radius")
    if not len(steps):
        return
    radii = np.where(np.isfinite(radii), radii, 0.0)
    for column in np.flatnonzero((radii > 1).any(axis=0)):
        if any(cell in view.tensors[column].module for cell in GATED):
            continue
        before = steps <= (view.step[view.first_broken] if view.broken.any() else np.inf)
        radius = float(radii[before, column].max(initial=0.0))
        length = _length(view, int(column))
        cell = is_cell(view.tensors[column])
        if (
            length > 1
            and length * np.log(max(radius, 1e-9)) > np.log(100)
            and _explodes(view, cell)
        ):
            yield _finding(view, int(column), radius, length, float(radii[0, column]))


def _length(view: View, column: int) -> int:
    _, lengths = view.sample("recurrent_steps")
    value = median(lengths[:, column]) if len(lengths) else np.nan
    return int(value) if np.isfinite(value) else 0


def _explodes(view: View, cell: bool) -> bool:
    """Broken steps, spikes, heavy-tailed or growing norms: a radius alone is not a fault.

    A layer that is used several times, with others and a residual between, multiplies by more than
    its own matrix: of it, spikes alone say nothing.
    """
    norms = view.norm[view.usable]
    if len(norms) < 4 or (cell and len(view.spikes)):
        return True
    story = first_break(view)
    if story is not None:  # a NaN out of the blue has another origin
        return story.exploded or not story.before.size
    trend = view.loss_trend
    if trend.known and not (view.stuck or trend.diverged or trend.dear):
        return False
    heavy = float(norms.max()) > 30 * median(norms)
    risen = median(norms[-len(norms) // 4 :]) > 10 * median(norms[: max(2, len(norms) // 10)])
    return heavy or (risen and order_agreement(norms) > 0.3) or median(norms) > 100


def _finding(view: View, column: int, radius: float, length: int, first: float) -> Finding:
    name = view.tensors[column].name
    power = length * np.log10(radius)
    grown = number(radius**length) if power < 300 else f"1e{power:.0f}"
    norms = view.norm[view.usable]
    top = float(norms.max()) if norms.size else np.inf
    return finding(
        view,
        "SG204",
        "error",
        0.94 if first > 1.05 else 0.8,  # what pushed it over 1 may be the better answer
        f"Gradients explode through time: {name} has a spectral radius of {number(radius)}, and "
        f"{length} time steps multiply by up to {grown}.",
        evidence=[
            f"Spectral radius: {number(first)} at the first sample, at most {number(radius)}.",
            f"{number(radius)} to the power {length} is {grown}.",
            f"Gradient norms: median {number(median(norms))}, highest {number(top)}; "
            f"{percent(float(view.broken.mean()))} of the steps are not finite.",
        ],
        steps=[int(view.step[int(np.argmax(np.where(view.usable, view.norm, -1.0)))])],
        tensors=[name],
        causes=[
            "the recurrent matrix is initialised too large",
            "training pushed it over 1, with no clipping to hold it",
        ],
        fixes=hold_norm(
            view,
            code(
                view,
                torch=f"nn.init.orthogonal_(model.{name})  # spectral radius 1\n"
                "# or gates: nn.LSTM / nn.GRU in place of nn.RNN",
                keras='keras.layers.SimpleRNN(n, recurrent_initializer="orthogonal")',
                jax="nn.SimpleCell(n, recurrent_kernel_init=nn.initializers.orthogonal())",
            ),
        ),
        figures={"radius": radius, "length": length, "log10_product": power},
    )


RULE = Rule(
    "SG204",
    "gradients that explode through time",
    check,
    supersedes=("SG101", "SG102", "SG201", "SG202", "SG203", "SG205"),
)
