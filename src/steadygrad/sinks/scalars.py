"""Steps as named numbers, for loggers that draw curves.

One place decides the names and what is sent, so that the same run reads the same in every
logger. A NaN or an inf is sent like any number. Figures that were never known (a loss that
nobody computed, a threshold where nothing clips) are left out instead of sent as NaN, for a
curve of NaN says that something broke.
"""

from __future__ import annotations

import math
from abc import abstractmethod

import numpy as np

from steadygrad.runlog.records import applied_norm
from steadygrad.sinks.base import Batch, RunFigures, Sample, Sink, tensor_figures

STEP_NAMES = {
    "norm": "grad_norm/total",
    "threshold": "clip/threshold",
    "coef": "clip/coef",
    "cosine": "clip/cosine",
    "nonfinite": "grad_nonfinite/total",
    "loss": "step/loss",
    "lr": "step/lr",
    "loss_scale": "step/loss_scale",
}
TENSOR_NAMES = {
    "norm": "grad_norm",
    "max_abs": "grad_max",
    "nonfinite": "grad_nonfinite",
    "zeros": "grad_zeros",
}


class ScalarSink(Sink):
    """A logger of named numbers; a subclass writes `scalars`."""

    def __init__(self, target: str = "", *, tensors: int | None = None) -> None:
        super().__init__(target, tensors=tensors)
        self._ever_known: set[str] = set()
        self._steps: dict[int, int] = {}
        self._clipped: dict[int, int] = {}

    @abstractmethod
    def scalars(self, values: dict[str, float], step: int, time: float) -> None:
        """Take the numbers of one step.

        Args:
            values: name to number, NaN and inf included.
            step: the optimizer's step.
            time: seconds since the Unix epoch.
        """

    def write(self, batch: Batch) -> None:
        """Send every step's totals, and the tensors' figures where they are due."""
        for row, step in enumerate(batch.steps):
            values = self.totals(step)
            if self._due(batch, row):
                values |= tensor_scalars(batch, row)
            self.scalars(values, int(step["step"]), float(step["time"]))

    def sample(self, sample: Sample) -> None:
        """Send a figure per tensor under its own name."""
        values = {f"{sample.name}/{tensor}": value for tensor, value in sample.values}
        self.scalars(values, sample.step, math.nan)

    def whole(self, figures: RunFigures) -> None:
        """Send them under ``run/``, at the last step."""
        values = {f"run/{name}": value for name, value in figures.values.items()}
        self.scalars(values, figures.step, figures.time)

    def totals(self, step: np.void) -> dict[str, float]:
        """The numbers of one step that are not a tensor's."""
        optimizer = int(step["optimizer"])
        suffix = f"/optimizer_{optimizer}" if optimizer else ""
        values = {
            shown + suffix: float(step[name])
            for name, shown in STEP_NAMES.items()
            if self._known_figure(name, step)
        }
        norm = applied_norm(float(step["norm"]), float(step["coef"]), str(step["action"]))
        rate = self._clip_rate(optimizer, step)
        return values | {f"clip/norm{suffix}": norm, f"clip/rate{suffix}": rate}

    def _known_figure(self, name: str, step: np.void) -> bool:
        value = float(step[name])
        if name == "threshold":
            return not math.isinf(value)  # inf says that nothing clips
        if name == "norm" or not math.isnan(value):
            self._ever_known.add(name)
        return name in self._ever_known

    def _clip_rate(self, optimizer: int, step: np.void) -> float:
        self._steps[optimizer] = self._steps.get(optimizer, 0) + 1
        clipped = self._clipped.get(optimizer, 0) + (float(step["coef"]) < 1.0)
        self._clipped[optimizer] = clipped
        return clipped / self._steps[optimizer]

    def _due(self, batch: Batch, row: int) -> bool:
        broken = self.tensors > 0 and bool(np.nansum(batch.nonfinite[row]))
        return broken or self.wants_tensors(int(batch.steps["step"][row]))


def tensor_scalars(batch: Batch, row: int) -> dict[str, float]:
    """The numbers of every tensor at one step, as ``grad_norm/<tensor>`` and so on."""
    return {
        f"{TENSOR_NAMES[figure]}/{_apart(name)}": value
        for name, figures in tensor_figures(batch, row)
        for figure, value in figures.items()
    }


def _apart(name: str) -> str:
    return "total_" if name == "total" else name  # `total` is the whole gradient's
