"""SG305: a recurrent matrix that lets nothing of the gradient reach the early time steps."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from steadygrad.robust import columns_median, median
from steadygrad.rules.advice import code, in_model, jax_recurrent
from steadygrad.rules.base import Rule, finding
from steadygrad.rules.evidence.tensors import is_cell
from steadygrad.rules.evidence.through_time import Measured, measured, sentence
from steadygrad.rules.evidence.view import View
from steadygrad.rules.evidence.wording import number
from steadygrad.rules.finding import Finding

LOST = float(np.finfo(np.float32).eps)
"""Share of the gradient under which the early steps are rounded away beside the late ones."""
NEXT_TO_NOTHING = 1e-5
"""The same where it was measured and the loss stands: under the noise of any batch."""
GATED = ("LSTM", "GRU")
"""Cells that carry the gradient past their matrix."""


def check(view: View) -> Iterator[Finding]:
    if not view.enough or not _held_back(view):
        return
    samples = measured(view)
    for column, seen in samples.items():
        late = seen[len(seen) // 2 :]
        if median([sample.reach for sample in late]) < NEXT_TO_NOTHING:
            yield _measured(view, column, late[-1])
    yield from _by_radius(view, set(samples))


def _by_radius(view: View, measured_ones: set[int]) -> Iterator[Finding]:
    """What a plain cell's matrix says, where its gradient was not measured."""
    steps, radii = view.sample("spectral_radius")
    _, lengths = view.sample("recurrent_steps")
    if not len(steps) or not len(lengths):
        return
    radius, length = columns_median(radii), columns_median(lengths)
    for column in np.flatnonzero(np.isfinite(radius) & np.isfinite(length)):
        gated = any(cell in view.tensors[column].module for cell in GATED)
        reached = length[column] * np.log(max(float(radius[column]), 1e-9))
        if (
            not gated
            and column not in measured_ones
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
    if not trend.recorded or trend.signed or trend.stalled:
        return False
    late = view.loss[len(view) // 5 :]
    half = len(late) // 2
    first, second = median(late[:half]), median(late[half:])
    return bool(first - second < 0.03 * abs(first) and trend.end > 0.1 * abs(trend.first))


def _measured(view: View, column: int, sample: Measured) -> Finding:
    name = view.tensors[column].name
    _, radii = view.sample("spectral_radius")
    radius = median(radii[:, column]) if len(radii) else np.nan
    power = np.log10(max(sample.reach, 1e-300))
    said = [f"The spectral radius of {name} is {number(radius)}."] if np.isfinite(radius) else []
    return _conclusion(
        view,
        name,
        f"{number(sample.reach)} of it is left at the first of {sample.length} time steps.",
        [
            sentence(sample),
            *said,
            "Beside the noise of the late time steps that is nothing: what lies further back is "
            "not learned from.",
        ],
        {"reach": sample.reach, "length": sample.length, "half_life": sample.half_life},
        power,
    )


def _finding(view: View, column: int, radius: float, length: int) -> Finding:
    name = view.tensors[column].name
    power = length * np.log10(max(radius, 1e-9))
    left = number(radius**length) if power > -300 else f"1e{power:.0f}"
    span = int(np.log(LOST) / np.log(max(radius, 1e-9)))
    return _conclusion(
        view,
        name,
        f"{name} has a spectral radius of {number(radius)}, and {length} time steps leave {left} "
        "of the gradient.",
        [
            f"{number(radius)} to the power {length} is {left}; float32 keeps {number(LOST)}: what "
            f"lies more than {span} time steps back is not learned from."
        ],
        {"radius": radius, "length": length, "log10_product": power},
        power,
    )


def _conclusion(
    view: View, name: str, what: str, evidence: list[str], figures: dict[str, float], power: float
) -> Finding:
    trend, gated = view.loss_trend, any(cell in _module(view, name) for cell in GATED)
    return finding(
        view,
        "SG305",
        "warning" if view.stuck else "info",
        min(0.92, 0.75 + 0.02 * (np.log10(LOST) - power)),  # the further below, the surer
        f"Gradients vanish through time: {what}",
        evidence=[
            *evidence,
            f"The loss stalls: {number(trend.start)} at first, {number(trend.end)} at the end."
            if view.stuck
            else f"The loss fell to {number(trend.middle)} at once and stayed there "
            f"({number(trend.end)} at the end): as far as a constant prediction may take it.",
        ],
        steps=[int(view.step[0]), int(view.step[-1])],
        tensors=[name],
        causes=[
            "gates that forget: forget and update gates start half open, and halve what they keep"
            if gated
            else "the recurrent matrix is initialised too small for the length of the sequences",
            "sequences longer than the cell can carry"
            if gated
            else "a plain recurrent cell where gates are needed",
        ],
        fixes=[
            _open_gates(view, name)
            if gated
            else code(
                view,
                torch=f"torch.nn.init.orthogonal_({in_model(name)})  # spectral radius 1\n"
                "# or gates: nn.LSTM / nn.GRU in place of nn.RNN",
                keras='keras.layers.SimpleRNN(n, recurrent_initializer="orthogonal")\n'
                "# or gates: keras.layers.LSTM(n)",
                jax=jax_recurrent(view, "SimpleCell"),
            ),
            "# Clipping does nothing here: it can only make a gradient smaller.",
        ],
        figures=figures,
    )


def _module(view: View, name: str) -> str:
    return next(t.module for t in view.tensors if t.name == name)


def _open_gates(view: View, name: str) -> str:
    """Gates that begin open: an LSTM's forget gate, a GRU's update gate."""
    bias = name.replace("weight_hh", "bias_hh")
    return code(
        view,
        torch=f"bias = {in_model(bias)}  # gates that begin open keep what they hold\n"
        f"h = len(bias) // {4 if 'LSTM' in _module(view, name) else 3}\n"
        "torch.nn.init.constant_(bias[h:2 * h].detach(), 4.0)",
        keras="keras.layers.LSTM(n, unit_forget_bias=True)",
        jax="nn.OptimizedLSTMCell(n)  # with a forget bias of 1 or more",
    )


RULE = Rule("SG305", "gradients that vanish through time", check)
