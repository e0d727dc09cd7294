"""SG204: a recurrent matrix that multiplies gradients at every time step."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from steadygrad.robust import ENOUGH, median, order_agreement
from steadygrad.rules.advice import code, hold_norm, in_model, jax_recurrent, lower_lr
from steadygrad.rules.base import Rule, finding
from steadygrad.rules.evidence.breaks import first_break
from steadygrad.rules.evidence.tensors import is_cell
from steadygrad.rules.evidence.through_time import (
    Measured,
    measured,
    radii_at_start,
    sentence,
)
from steadygrad.rules.evidence.view import View
from steadygrad.rules.evidence.wording import number, percent, times
from steadygrad.rules.finding import Finding

GATED = ("LSTM", "GRU")
"""Cells whose gates, not their recurrent matrix alone, carry the gradient."""

FAR = 1e6
"""What a matrix multiplies by over all time steps that no sound training has."""
SLIGHT = 0.05
"""What a radius may be over 1 at the start, and what the first steps may add to it."""
OVER = 1 + SLIGHT
"""Radius from which a matrix is too large at the start."""
GROWN = 100.0
"""Factor over all time steps from which a gradient explodes on its way back."""


def check(view: View) -> Iterator[Finding]:
    seen = measured(view)
    samples = {column: _largest(view, several) for column, several in seen.items()}
    radii = _by_radius(view)
    yield from (_finding(view, *row, samples.get(row[0])) for row in radii)
    for column, sample in samples.items():
        if column in {row[0] for row in radii} or not _grows(sample):
            continue
        if _always(seen[column]) or _explodes(view, True):
            yield _measured(view, column, sample, seen[column][0])


def _largest(view: View, seen: list[Measured]) -> Measured:
    """The sample that grows most, of those before the run broke where there is one."""
    limit = view.step[view.first_broken] if view.broken.any() else np.inf
    return max([s for s in seen if s.step <= limit] or seen[:1], key=lambda s: s.growth)


def _grows(sample: Measured) -> bool:
    """Whether the gradient grows by more than a loss at every time step adds up to."""
    return sample.growth > max(GROWN, 10 * sample.length)


def _always(seen: list[Measured]) -> bool:
    """Whether it grows so from first to last: then it is a fact, however the loss does."""
    return len(seen) >= ENOUGH // 2 and sum(map(_grows, seen)) > 0.75 * len(seen)


def _by_radius(view: View) -> list[tuple[int, float, int, float]]:
    """Columns of plain matrices that are too large: with radius, time steps and first radius."""
    rows = []
    steps, radii = view.sample("spectral_radius")
    if not len(steps):
        return []
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
            and (_explodes(view, cell) or (cell and _outgrows(view, radius, length)))
        ):
            rows.append((int(column), radius, length, float(radii[0, column])))
    return rows


def _outgrows(view: View, radius: float, length: int) -> bool:
    """Whether norms show what the matrix says, however the loss does.

    Saturated states hold a gradient that the matrix alone would let explode: small norms.
    """
    return length * np.log(radius) > np.log(FAR) and median(view.norm[view.usable]) > GROWN


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
    if trend.recorded and not (view.stuck or trend.diverged or trend.dear):
        return False
    heavy = float(norms.max()) > 30 * median(norms)
    risen = median(norms[-len(norms) // 4 :]) > 10 * median(norms[: max(2, len(norms) // 10)])
    return heavy or (risen and order_agreement(norms) > 0.3) or median(norms) > 100


def _measured(view: View, column: int, sample: Measured, first: Measured) -> Finding:
    name = view.tensors[column].name
    return finding(
        view,
        "SG204",
        "error",
        0.9 if first.growth > GROWN else 0.8,  # what made it grow may be the better answer
        f"Gradients explode through time: on its way back through {sample.length} time steps of "
        f"{name} the gradient grows {times(sample.growth)}.",
        evidence=[
            sentence(sample),
            f"Gradient norms: median {number(median(view.norm[view.usable]))}; "
            f"{percent(float(view.broken.mean()))} of the steps are not finite.",
        ],
        steps=[sample.step],
        tensors=[name],
        causes=["recurrent weights that grew or began too large", "sequences that are too long"],
        fixes=_in_order(
            view,
            code(
                view,
                torch=f"torch.nn.init.orthogonal_({in_model(name)})\n"
                "# or shorter pieces: state = state.detach() between them",
                keras='keras.layers.LSTM(n, recurrent_initializer="orthogonal")',
                jax=jax_recurrent(view, "OptimizedLSTMCell"),
            ),
            from_the_start=first.growth > GROWN,
        ),
        figures={"growth": sample.growth, "length": sample.length, "half_life": sample.half_life},
    )


def _finding(
    view: View,
    column: int,
    radius: float,
    length: int,
    first: float,
    sample: Measured | None = None,
) -> Finding:
    name, start = view.tensors[column].name, float(radii_at_start(view)[column])
    push = first - start
    since = f"{number(start)} at the start, {number(first)}" if push > SLIGHT else number(first)
    causes = [
        "the recurrent matrix is initialised too large",
        "training pushed it over 1, with no clipping to hold it",
    ]
    power = length * np.log10(radius)
    grown = number(radius**length) if power < 300 else f"1e{power:.0f}"
    norms = view.norm[view.usable]
    top = float(norms.max()) if norms.size else np.inf
    return finding(
        view,
        "SG204",
        "error",
        0.94 if first > OVER else 0.8,  # what pushed it over 1 may be the better answer
        f"Gradients explode through time: {name} has a spectral radius of {number(radius)}, and "
        f"{length} time steps multiply by up to {grown}.",
        evidence=[
            f"Spectral radius: {since} at the first sample, at most {number(radius)}.",
            f"{number(radius)} to the power {length} is {grown}.",
            *([sentence(sample)] if sample else []),
            f"Gradient norms: median {number(median(norms))}, highest {number(top)}; "
            f"{percent(float(view.broken.mean()))} of the steps are not finite.",
        ],
        steps=[int(view.step[int(np.argmax(np.where(view.usable, view.norm, -1.0)))])],
        tensors=[name],
        causes=causes if start > OVER else causes[::-1],
        fixes=_in_order(
            view,
            code(
                view,
                torch=f"torch.nn.init.orthogonal_({in_model(name)})  # spectral radius 1\n"
                "# or gates: nn.LSTM / nn.GRU in place of nn.RNN",
                keras='keras.layers.SimpleRNN(n, recurrent_initializer="orthogonal")',
                jax=jax_recurrent(view, "SimpleCell"),
            ),
            from_the_start=start > OVER,
            push=push,
        ),
        figures={"radius": radius, "length": length, "log10_product": power},
    )


def _in_order(view: View, matrix: str, from_the_start: bool, push: float = 0.0) -> list[str]:
    """What mends the matrix, and a clip; a clip first where training pushed the matrix over 1.

    One that is too large from the start multiplies whatever a clip lets through. Where the first
    steps add to the radius by ``push``, they would do so to a sound matrix: the rate comes first.
    """
    clips = hold_norm(view)
    if push > SLIGHT:
        slower = lower_lr(view, 10.0 ** min(max(round(math.log10(push / SLIGHT)), 1), 6))
        both = f"{matrix}\n# and a rate at which the first steps leave it so:\n{slower}"
        return [both, *clips] if from_the_start else [slower, *clips, matrix]
    return [matrix, *clips] if from_the_start else [clips[0], matrix, *clips[1:]]


RULE = Rule(
    "SG204",
    "gradients that explode through time",
    check,
    supersedes=("SG101", "SG102", "SG201", "SG202", "SG203", "SG205", "SG305"),
)
