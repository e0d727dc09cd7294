"""The gradient at each time step of a recurrent layer, as measured at the sampled steps."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from steadygrad.robust import median
from steadygrad.rules.evidence.steps import Array
from steadygrad.rules.evidence.view import View
from steadygrad.rules.evidence.wording import number
from steadygrad.vocabulary import THROUGH_TIME


@dataclass(frozen=True)
class Measured:
    """One sample of one recurrent matrix.

    Attributes:
        step: the optimizer step.
        length: time steps of the sequences.
        positions: the time steps that were measured, ascending.
        norms: norm of dLoss/d(state) at each of them.
    """

    step: int
    length: int
    positions: Array
    norms: Array

    @property
    def reach(self) -> float:
        """The first eighth's share of the largest norm: what is left of it on its way back."""
        return median(self._first) / float(self.norms.max())

    @property
    def growth(self) -> float:
        """The first eighth's norm over that of the last eighth of the time steps that get any.

        One last step that the loss hardly reads would else make a growth of the others.
        """
        alive = self.norms[self.norms > 0]
        return median(self._first) / median(alive[-max(1, len(alive) // 8) :])

    @property
    def half_life(self) -> float:
        """Time steps in which the norm halves, or doubles, on its way back; inf for neither."""
        ratio = self.growth
        alive = self.positions[self.norms > 0]
        last = median(alive[-max(1, len(alive) // 8) :])
        between = last - median(self.positions[: len(self._first)])
        rate = abs(math.log(ratio)) / max(1.0, between) if ratio > 0 else math.inf
        return math.log(2) / rate if rate else math.inf

    @property
    def _first(self) -> Array:
        return self.norms[: max(1, len(self.norms) // 8)]


def measured(view: View) -> dict[int, list[Measured]]:
    """Samples of each recurrent matrix of this optimizer, by its column in the view.

    Args:
        view: the run.

    Returns:
        In order of steps; only samples in which some time step gets a gradient, and none of steps
        that a rollback took back.
    """
    columns = {int(tensor): column for column, tensor in enumerate(view.order)}
    samples: dict[int, list[Measured]] = {}
    events = [event for event in view.run.events if event.kind == THROUGH_TIME]
    gone = view.taken_back(np.array([event.step or 0 for event in events], np.int64))
    for event, taken_back in zip(events, gone, strict=True):
        column = columns.get(event.data.get("tensor", -1))
        if column is None or taken_back:
            continue
        places, norms = (np.array(event.data.get(key) or (), float) for key in _LISTS)
        if len(places) == len(norms) > 2 and np.isfinite(norms).all() and norms.max() > 0:
            length = int(event.data.get("length", 0))
            samples.setdefault(column, []).append(Measured(event.step or 0, length, places, norms))
    return samples


_LISTS = ("positions", "norms")


def radii_at_start(view: View) -> Array:
    """The spectral radius of each matrix before the first step; NaN where none was measured.

    Radii are first measured once a step is done, and at a high rate that step has moved them. The
    size of the matrix, which is known from before, gives the radius of an orthogonal one exactly,
    and that of one drawn at random nearly. It is believed where the first updates can have made
    the difference.

    Args:
        view: the run.
    """
    steps, radii = view.sample("spectral_radius")
    if not len(steps):
        return np.full(len(view.tensors), math.nan)
    first: Array = radii[0]
    size_steps, sizes = view.sample("weight_norm")
    moved_steps, ratios = view.sample("update_ratio")
    if not len(size_steps) or size_steps[0] >= steps[0]:
        return first
    moved = sizes[0] * ratios[moved_steps < steps[0]].sum(axis=0)
    rows = np.array([max(1, *tensor.shape[:1]) for tensor in view.tensors])
    start = sizes[0] / np.sqrt(rows)
    with np.errstate(invalid="ignore"):
        at_start: Array = np.where((start < first) & (first - start <= moved), start, first)
    return at_start


def sentence(sample: Measured) -> str:
    """What one sample shows, for evidence."""
    first, last = sample.norms[0], sample.norms[sample.norms > 0][-1]
    verb = "doubles" if sample.growth > 1 else "halves"
    return (
        f"Measured at step {sample.step}: the norm of dLoss/d(state) is {number(float(last))} at "
        f"the last time step and {number(float(first))} at the first of {sample.length}; on "
        f"its way back it {verb} every {number(sample.half_life)} time steps."
    )
