"""A step as it was measured, which becomes a record where somebody asks for one."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from steadygrad.runlog.items import SealedStep, StepItem
from steadygrad.runlog.records import StepRecord

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


class MeasuredStep(SealedStep):
    """A step that was only looked at: nothing of ours was done to it.

    Last in it are the figures of its tensors, as `kernels.seal` gave them, and a `PassedStep`.
    """

    __slots__ = ()

    def opened(self) -> StepItem:
        return self.opened_together([self])[0]

    @classmethod
    def opened_together(cls, steps: Sequence[SealedStep]) -> list[StepItem]:
        items: list[StepItem] = []
        for length, alike in itertools.groupby(steps, _bytes_of_figures):
            group = list(alike)
            block = np.frombuffer(b"".join([step[_FIGURES] for step in group]), np.float64)
            items += map(_item, group, *_columns(block.reshape(-1, length // block.itemsize)))
        return items


_FIGURES = 7


def _bytes_of_figures(step: SealedStep) -> int:
    return len(step[_FIGURES])


def _columns(rows: Floats) -> Iterator[Iterable[Any]]:
    """Of steps over as many tensors: norms, maxima, counts of both kinds, total norms; by step."""
    n, counts = rows.shape[1] // 4, rows.view(np.int64)
    yield from (rows[:, :n], rows[:, n : 2 * n])
    yield from (counts[:, 2 * n : 3 * n], counts[:, 3 * n : 4 * n])
    yield rows[:, -1].tolist()


def _item(
    sealed: SealedStep, norms: Floats, max_abs: Floats, nonfinite: Ints, zeros: Ints, norm: float
) -> StepItem:
    step, time, loss, loss_told, lr, optimizer, tensor_ids, _, passed = sealed
    record = StepRecord.made_of(
        step=step,
        time=time,
        loss=loss,
        norm=norm,
        threshold=passed.threshold,
        coef=passed.coef,
        action="none" if passed.coef == 1.0 else "clip",
        lr=lr,
        nonfinite=0 if norm - norm == 0 else int(nonfinite.sum()),
        optimizer=optimizer,
        loss_told=loss_told,
    )
    return StepItem(record, time, tensor_ids, norms, max_abs, nonfinite, zeros)
