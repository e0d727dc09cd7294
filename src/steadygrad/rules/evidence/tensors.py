"""What a run tells of single tensors: their names, their norms, what was sampled of them.

Figures are read for at most `MOST_ROWS` steps, so that a long run costs no more memory than a
short one.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from steadygrad.robust import ENOUGH, columns_median, median
from steadygrad.rules.evidence.steps import Array, Steps
from steadygrad.runlog.run import KEPT_BYTES
from steadygrad.vocabulary import Sample

if TYPE_CHECKING:
    from steadygrad.runlog import TensorInfo

MOST_ROWS = 2048
CLUMP = 8
"""Neighbouring steps of a long run that are read together: each place on file costs a read."""
NOTHING = 1e-3
"""Share of its first size under which a run's whole gradient counts as gone."""


def is_embedding(tensor: TensorInfo) -> bool:
    """Whether a tensor is a lookup table, whose rows are mostly untouched by design."""
    return "embedding" in tensor.module.lower() or "embed" in tensor.name.lower()


def parts(tensor: TensorInfo) -> list[str]:
    """A tensor's name in pieces: PyTorch joins them by points, Keras and JAX by slashes.

    Example:
        >>> from steadygrad.runlog import TensorInfo
        >>> parts(TensorInfo("head.weight")), parts(TensorInfo("model/dense_1/bias"))
        (['head', 'weight'], ['model', 'dense_1', 'bias'])
    """
    return re.split(r"[./]", tensor.name)


def by_number(tensors: Sequence[TensorInfo]) -> list[int]:
    """An order of tensors in which like names follow their numbers, and all else stays.

    JAX sorts the keys of a dict as text: ``Dense_10`` comes before ``Dense_2``.

    Example:
        >>> from steadygrad.runlog import TensorInfo
        >>> by_number([TensorInfo(f"z_{n}/w") for n in (0, 10, 2)] + [TensorInfo("a/w")])
        [0, 2, 1, 3]
    """
    first: dict[tuple[tuple[int, int], ...], dict[str, int]] = {}
    keys = []
    for place, tensor in enumerate(tensors):
        key: tuple[tuple[int, int], ...] = ()
        for part in parts(tensor):
            stem = part.rstrip("0123456789")
            met = first.setdefault(key, {}).setdefault(stem, place)
            key = (*key, (met, int(part[len(stem) :] or 0)))
        keys.append(key)
    return sorted(range(len(tensors)), key=keys.__getitem__)


def owner_names(tensors: Sequence[TensorInfo]) -> list[str]:
    """The module of each tensor: a weight and its bias stand or fall together."""
    return [".".join(parts(t)[:-1]) or t.name for t in tensors]


def is_cell(tensor: TensorInfo) -> bool:
    """Whether a tensor is of a recurrent layer or cell, used once per time step."""
    recurrent = parts(tensor)[-1].startswith(("weight_hh", "recurrent_kernel"))
    return recurrent or any(kind in tensor.module for kind in ("RNN", "LSTM", "GRU", "Cell"))


class TensorsOfSteps(Steps):
    """One optimizer's steps, and the figures of their tensors."""

    @cached_property
    def order(self) -> Array:
        """Indices of this optimizer's tensors, in forward order where it is known."""
        part = self.run.parts.get(self.optimizer)
        columns = [] if part is None else part.columns
        if not columns and not self.several:
            columns = list(range(len(self.run.tensors)))
        tensors = [self.run.tensors[i] for i in columns]
        if not all(tensor.position >= 0 for tensor in tensors):
            listed = by_number(tensors) if self.framework == "jax" else range(len(columns))
            return np.array([columns[i] for i in listed], dtype=np.int64)
        placed = sorted(columns, key=lambda i: (self.run.tensors[i].position, i))
        return np.array(placed, dtype=np.int64)

    @cached_property
    def tensors(self) -> list[TensorInfo]:
        """The tensors, in the order of `order`."""
        return [self.run.tensors[i] for i in self.order]

    @cached_property
    def rows_read(self) -> Array:
        """Which of the optimizer's steps have their tensor figures read, ascending."""
        if len(self) <= MOST_ROWS:
            return np.arange(len(self))
        starts = np.linspace(0, len(self) - CLUMP, MOST_ROWS // 2 // CLUMP).astype(np.int64)
        even = (starts[:, None] + np.arange(CLUMP)).ravel()
        peaks = np.argsort(np.where(self.usable, self.norm, -np.inf))[-MOST_ROWS // 16 :]
        around = self.first_broken + np.arange(-32, 32) if self.broken.any() else peaks[:0]
        head, tail = np.arange(MOST_ROWS // 8), np.arange(len(self) - MOST_ROWS // 8, len(self))
        chosen = np.unique(np.concatenate([even, peaks, around, head, tail]))
        return chosen[(chosen >= 0) & (chosen < len(self))]

    def figures(self, name: str) -> Array:
        """One per-tensor figure, ``[steps read, tensors]``, columns as in `order`.

        Args:
            name: ``norms``, ``max_abs``, ``nonfinite`` or ``zeros``.

        Returns:
            float64; NaN where not measured.
        """
        return self.run.tensor_rows(self.rows[self.rows_read], self.order, figure=name)

    @cached_property
    def norms(self) -> Array:
        """Per-tensor norms, ``[steps read, tensors]``; inf and NaN as they are."""
        return self.figures("norms")

    @cached_property
    def zeros(self) -> Array:
        """Share of zero elements, ``[steps read, tensors]``."""
        return self.figures("zeros")

    @cached_property
    def good(self) -> Array:
        """Which of the steps in `rows_read` are usable, bool."""
        return self.usable[self.rows_read]

    @cached_property
    def healthy_norms(self) -> Array:
        """`norms` of the usable steps alone; what is not finite becomes NaN."""
        table = self.norms[self.good]
        return np.where(np.isfinite(table), table, np.nan)

    @cached_property
    def live_norms(self) -> Array:
        """`healthy_norms` of the steps before the gradient as a whole fell to nothing.

        Where a run ends in steps without a gradient worth the name, medians over all of them
        would tell of that end alone.
        """
        total = self.norm[self.rows_read][self.good]
        live = total >= NOTHING * median(total[: max(3, len(total) // 10)])
        return self.healthy_norms[live] if live.sum() >= ENOUGH else self.healthy_norms

    @cached_property
    def weights(self) -> Array:
        """Columns of the matrices and kernels (two axes or more), in forward order."""
        flags = [len(t.shape) >= 2 and not is_embedding(t) for t in self.tensors]
        return np.flatnonzero(flags)

    def sample(self, name: Sample) -> tuple[Array, Array]:
        """A figure sampled on a schedule: steps and ``[samples, tensors]``, columns as `order`."""
        asked = self._sampled.get(name)
        if asked is None:
            asked = self._of_file(name)
            if asked[1].nbytes <= KEPT_BYTES:
                self._sampled[name] = asked
        return asked

    @cached_property
    def _sampled(self) -> dict[Sample, tuple[Array, Array]]:
        return {}

    def _of_file(self, name: Sample) -> tuple[Array, Array]:
        if not len(self.order):
            return np.zeros(0, np.int64), np.zeros((0, 0))
        steps, table = self.run.samples_of(name, self.order.tolist())
        if not len(steps):
            return steps, table
        seen = np.isfinite(table).any(axis=1) | np.isinf(table).any(axis=1)
        seen &= ~self.taken_back(steps)
        return steps[seen], table[seen]

    @cached_property
    def travel(self) -> float:
        """How far the weights that move most could get in this run, in multiples of their size.

        Steps times their median update over weight; NaN where updates were not sampled.
        """
        steps, ratios = self.sample("update_ratio")
        if not len(steps) or not len(self.weights):
            return math.nan
        each = columns_median(ratios[:, self.weights])
        return float(np.nanmax(each, initial=0.0)) * int(self.usable.sum())
