"""Clips that a script writes as arithmetic, told on the host from the rows of its steps."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from steadygrad.policies.arithmetic import (
    COARSE,
    FINE,
    LOOKED_AT,
    ChangesOfOnePlace,
    change_of,
    left_by,
)
from steadygrad.policies.in_numpy import scalar
from steadygrad.policies.stepping import CLIP
from steadygrad.runlog.records import TensorInfo
from steadygrad.stats import GradientStats
from steadygrad.vocabulary import FIGURES

STEP = ("norm", "threshold", "coef", "cosine", "action")
"""What a row tells of a step, before the figures of its tensors."""

_OF_TWO_BYTES = ("float16", "bfloat16")


class ArithmeticClips:
    """Whether what one optimizer is given was clipped by arithmetic.

    Args:
        infos: its tensors.
    """

    def __init__(self, infos: Sequence[TensorInfo]) -> None:
        self._names = tuple(info.name for info in infos)
        self._sizes = tuple(math.prod(info.shape) for info in infos)
        coarse = any(info.dtype in _OF_TWO_BYTES for info in infos)
        self._near = COARSE if coarse else FINE
        self._changes = ChangesOfOnePlace()
        self._steps = 0

    @property
    def rests(self) -> bool:
        """Whether enough steps were looked at, and no clip was found."""
        return self._steps >= LOOKED_AT and not self._changes.is_clip

    def judged(
        self, before: NDArray[np.float64], after: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """What goes on record of a step.

        Args:
            before: the numbers of a row after its head, of the gradients before the arithmetic.
            after: the same of those that the step was given.

        Returns:
            Where that was a clip, the figures before it and what it left; else those after.
        """
        self._steps += 1
        was, now = self._stats(before), self._stats(after)
        change = change_of(was, now, self._near)
        if change is None:
            self._changes.left_alone(float(was.total_norm))
        elif self._changes.accepts(change, self._near):
            left = left_by(change, was, now)
            body = before.copy()
            body[1 : len(STEP)] = self._changes.limit, left.coef, left.cosine, CLIP
            return body
        body = after.copy()
        if change is None:
            body[STEP.index("threshold")] = self._changes.limit
        return body

    def _stats(self, body: NDArray[np.float64]) -> GradientStats:
        figures = body[len(STEP) :].reshape(len(FIGURES), len(self._names))
        there = ~np.isnan(figures[FIGURES.index("zeros")])
        names = tuple(itertools.compress(self._names, there))
        norm = float(body[STEP.index("norm")])
        norms, max_abs, nonfinite, zeros = figures[:, there]
        sizes = tuple(itertools.compress(self._sizes, there))
        return GradientStats(names, norms, max_abs, nonfinite, zeros, sizes, scalar(norm))
