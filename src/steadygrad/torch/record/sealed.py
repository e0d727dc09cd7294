"""A step as it was measured, which becomes a record where somebody asks for one."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from steadygrad.runlog.items import (
    Figures,
    SealedStep,
    StepItem,
    StepsTogether,
    places_by_tensors,
)
from steadygrad.runlog.records import STEP_DTYPE, StepRecord

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

    @classmethod
    def rows_together(cls, steps: Sequence[SealedStep]) -> StepsTogether:
        number, time, loss, _, lr, optimizer, ids, figures, passed = zip(*steps, strict=True)
        table = np.zeros(len(steps), STEP_DTYPE)
        columns = {"step": number, "time": time, "loss": loss, "lr": lr, "optimizer": optimizer}
        for name, values in columns.items():
            table[name] = values
        table["norm"] = _totals(figures)
        table["threshold"] = [each.threshold for each in passed]
        table["coef"] = [each.coef for each in passed]
        table["action"] = np.where(table["coef"] == 1.0, "none", "clip")
        table["loss_scale"] = table["cosine"] = 1.0
        groups = []
        for places in places_by_tensors(ids):
            rows = np.frombuffer(b"".join([figures[place] for place in places]), np.float64)
            group = Figures(ids[places[0]], places, *_by_figure(rows.reshape(len(places), -1)))
            broken = ~np.isfinite(table["norm"][places])
            if broken.any():
                counts = group.nonfinite[broken].sum(axis=1)
                table["nonfinite"][np.asarray(places)[broken]] = counts
            groups.append(group)
        return StepsTogether(table, groups)


_FIGURES = 7


def _bytes_of_figures(step: SealedStep) -> int:
    return len(step[_FIGURES])


def _columns(rows: Floats) -> Iterator[Iterable[Any]]:
    """Of steps over as many tensors: norms, maxima, counts of both kinds, total norms; by step."""
    yield from _by_figure(rows)
    yield rows[:, -1].tolist()


def _by_figure(rows: Floats) -> tuple[Floats, Floats, Ints, Ints]:
    """Norms, maxima, counts of what is not finite and of zeros, ``[steps, tensors]`` each."""
    n, counts = rows.shape[1] // 4, rows.view(np.int64)
    norms, max_abs = rows[:, :n], rows[:, n : 2 * n]
    return norms, max_abs, counts[:, 2 * n : 3 * n], counts[:, 3 * n : 4 * n]


def _totals(figures: Sequence[bytes]) -> Floats:
    return np.frombuffer(b"".join([each[-8:] for each in figures]), np.float64)


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
