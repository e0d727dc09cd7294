"""View: one optimizer's steps of a run, and the robust statistics that rules share.

Every rule reads through a view, so that the same things are kept out of every
window: steps with a NaN or inf, steps that were skipped, other optimizers' steps, and
those that a rollback took back. Statistics are medians and ratios: a single
outlier moves none of them. Tensor figures are read for at most `MOST_ROWS` steps, so
that a long run costs no more memory than a short one.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from steadygrad.recovery.events import RecoveryEvent, events_of
from steadygrad.recovery.undone import undone
from steadygrad.robust import ENOUGH as ENOUGH
from steadygrad.robust import blocks as blocks
from steadygrad.robust import columns_median as columns_median
from steadygrad.robust import median as median
from steadygrad.robust import running_median as running_median
from steadygrad.robust import spikes as spikes
from steadygrad.robust import spread as spread
from steadygrad.runlog.info import RunInfo
from steadygrad.vocabulary import NAN_LOSS, Sample

if TYPE_CHECKING:
    from steadygrad.runlog import Event, Run, TensorInfo

Array = npt.NDArray[Any]

MOST_ROWS = 2048
CLUMP = 8
"""Neighbouring steps of a long run that are read together: each place on file costs a read."""
NOTHING = 1e-3
"""Share of its first size under which a run's whole gradient counts as gone."""
OTHERWISE_KNOWN = 0.2
"""Share of steps with a finite loss from which a NaN among the others is the loss itself."""
SHORT = 0.2
"""Part of their size within which all weights stayed, so that a stalled loss is no evidence."""


@dataclass(frozen=True)
class LossTrend:
    """How the loss went, smoothed by a running median.

    Attributes:
        known: whether enough finite losses were recorded.
        first: lowest of the first three losses, before training has done anything.
        start: median of the first window.
        middle: median of the window half-way.
        end: median of the last window.
        lowest: lowest median of any window.
        highest: highest median of any window after the first.
        noise: median absolute deviation of the steps from the smoothed loss.
        swing: median absolute change from one step to the next.
        window: steps in a window.
    """

    known: bool = False
    first: float = math.nan
    start: float = math.nan
    middle: float = math.nan
    end: float = math.nan
    lowest: float = math.nan
    highest: float = math.nan
    noise: float = math.nan
    swing: float = math.nan
    window: int = 0

    @property
    def fall(self) -> float:
        """Share of the starting loss that the lowest window has shed; NaN where unknown."""
        return (self.start - self.lowest) / max(abs(self.start), 1e-12)

    @property
    def stalled(self) -> bool:
        """Whether the loss is known and never fell by 15 % of where it began."""
        return self.known and self.fall < 0.15

    @property
    def plateau(self) -> bool:
        """Whether the loss is known and its second half brought less than 5 %."""
        late = (self.middle - self.end) / max(abs(self.middle), 1e-12)
        return self.known and late < 0.05

    @property
    def dear(self) -> bool:
        """Whether training began by shedding nearly all of a loss that was far too large.

        In its first window: a loss that falls as far in the course of the run is a good fit.
        """
        return self.known and self.first > 30 * max(abs(self.start), 1e-6)

    @property
    def blew_up(self) -> bool:
        """Whether the loss stood far above where it began at some time."""
        return self.known and self.highest > 3 * abs(self.first) + 4 * self.noise

    @property
    def worse(self) -> bool:
        """Whether the smoothed loss was never again as low as before training."""
        return self.known and self.lowest - self.first > max(
            0.2 * abs(self.first), 0.5 * self.noise
        )

    @property
    def diverged(self) -> bool:
        """Whether the loss ends well above where it began, beyond its own noise."""
        base = min(self.first, self.start)
        return (
            self.known and not self.home and self.end - base > max(0.5 * abs(base), 4 * self.noise)
        )

    @property
    def home(self) -> bool:
        """Whether a loss of either sign ends as near to 0 as it began."""
        return self.signed and abs(self.end) <= max(abs(self.first), abs(self.start))

    @property
    def signed(self) -> bool:
        """Whether the loss goes below 0, so that it is no error and shares of it say little.

        The surrogate of a policy gradient, an adversary's score, a log-density.
        """
        return self.known and self.lowest < 0


class View:
    """One optimizer's steps, with broken and skipped ones told apart.

    Args:
        run: the run, as `steadygrad.open_run` gives it.
        optimizer: number of the optimizer.

    Attributes:
        acts: what recovery did with it.
        undone: how many of its steps were taken back, and are not among those seen here.
    """

    def __init__(self, run: Run, optimizer: int) -> None:
        self.run = run
        self.optimizer = optimizer
        self.acts: list[RecoveryEvent] = [
            act for act in events_of(run.events) if act.optimizer == optimizer
        ]
        every: Array = np.flatnonzero(run.steps["optimizer"] == optimizer)
        gone = self.taken_back(run.steps["step"][every])
        self.undone = int(gone.sum())
        self.rows: Array = every[~gone]
        numbers = np.unique(run.steps["optimizer"])
        self.several = len(numbers) > 1
        self.first_optimizer = int(numbers[0]) if len(numbers) else 0
        steps = run.steps[self.rows]
        self.step: Array = np.asarray(steps["step"], dtype=np.int64)
        self.loss: Array = np.asarray(steps["loss"], dtype=np.float64)
        self.norm: Array = np.asarray(steps["norm"], dtype=np.float64)
        self.threshold: Array = np.asarray(steps["threshold"], dtype=np.float64)
        self.coef: Array = np.asarray(steps["coef"], dtype=np.float64)
        self.lr: Array = np.asarray(steps["lr"], dtype=np.float64)
        self.loss_scale: Array = np.asarray(steps["loss_scale"], dtype=np.float64)
        self.cosine: Array = np.asarray(steps["cosine"], dtype=np.float64)
        self.skipped: Array = np.asarray(steps["action"] == "skip")
        self.broken: Array = (np.asarray(steps["nonfinite"]) > 0) | ~np.isfinite(self.norm)
        self.usable: Array = ~self.broken & ~self.skipped

    def __len__(self) -> int:
        return len(self.rows)

    def taken_back(self, steps: Array) -> Array:
        """Which of these step numbers a rollback took back."""
        return undone(np.asarray(steps, dtype=np.int64), self.acts)

    @property
    def info(self) -> RunInfo:
        """What the run file says of the run as a whole."""
        return self.run.info

    @property
    def framework(self) -> str:
        """``torch``, ``keras``, ``tensorflow`` or ``jax``; torch where unknown."""
        return str(self.info.get("framework") or "torch")

    @cached_property
    def enough(self) -> bool:
        """Whether there are usable steps enough for a statistic."""
        return int(self.usable.sum()) >= ENOUGH

    def events(self, kind: str) -> list[Event]:
        """The run's events of one kind that concern this optimizer."""
        found = (e for e in self.run.events if e.kind == kind)
        return [e for e in found if int(e.data.get("optimizer", self.optimizer)) == self.optimizer]

    # ---- tensors ----------------------------------------------------------------

    @cached_property
    def order(self) -> Array:
        """Indices of this optimizer's tensors, in forward order where it is known."""
        held = [i for i, t in enumerate(self.run.tensors) if t.optimizer == self.optimizer]
        if not held and not self.several:
            held = list(range(len(self.run.tensors)))
        known = all(self.run.tensors[i].position >= 0 for i in held)
        key = (lambda i: (self.run.tensors[i].position, i)) if known else (lambda i: (0, i))
        return np.array(sorted(held, key=key), dtype=np.int64)

    @cached_property
    def tensors(self) -> list[TensorInfo]:
        """The tensors, in the order of `order`."""
        return [self.run.tensors[i] for i in self.order]

    @cached_property
    def kept(self) -> Array:
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
        """One per-tensor figure, ``[kept steps, tensors]``, columns as in `order`.

        Args:
            name: ``norms``, ``max_abs``, ``nonfinite`` or ``zeros``.

        Returns:
            float64; NaN where not measured.
        """
        return self.run.tensor_rows(self.rows[self.kept], self.order, figure=name)

    @cached_property
    def norms(self) -> Array:
        """Per-tensor norms, ``[kept steps, tensors]``; inf and NaN kept."""
        return self.figures("norms")

    @cached_property
    def zeros(self) -> Array:
        """Share of zero elements, ``[kept steps, tensors]``."""
        return self.figures("zeros")

    @cached_property
    def good(self) -> Array:
        """Which of the kept steps are usable, bool."""
        return self.usable[self.kept]

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
        total = self.norm[self.kept][self.good]
        live = total >= NOTHING * median(total[: max(3, len(total) // 10)])
        return self.healthy_norms[live] if live.sum() >= ENOUGH else self.healthy_norms

    @cached_property
    def weights(self) -> Array:
        """Columns of the matrices and kernels (two axes or more), in forward order."""
        flags = [len(t.shape) >= 2 and not is_embedding(t) for t in self.tensors]
        return np.flatnonzero(flags)

    def sample(self, name: Sample) -> tuple[Array, Array]:
        """A figure sampled on a schedule: steps and ``[samples, tensors]``, columns as `order`."""
        steps, values = self.run.samples(name)
        if not len(steps) or not len(self.order):
            return np.zeros(0, np.int64), np.zeros((0, len(self.order)))
        table = values[:, self.order]
        seen = np.isfinite(table).any(axis=1) | np.isinf(table).any(axis=1)
        seen &= ~self.taken_back(steps)
        return np.asarray(steps)[seen], table[seen]

    # ---- events in time -----------------------------------------------------------

    @cached_property
    def first_broken(self) -> int:
        """Index of the first step with a NaN or inf; ask only where `broken` has one."""
        return int(np.flatnonzero(self.broken)[0])

    @cached_property
    def amp(self) -> bool:
        """Whether a loss scale was at work, so that single overflows are its normal search."""
        scales = self.loss_scale[np.isfinite(self.loss_scale)]
        return bool((scales != 1).any()) or bool(self.info.get("amp"))

    @cached_property
    def loss_nan(self) -> Array:
        """Which steps had a NaN for a loss, as against steps whose loss nobody told.

        The writer of the file says from where on NaN is what the loss was. Where it says nothing,
        a run whose losses are known otherwise has no reason to leave one out.
        """
        nan = np.isnan(self.loss)
        since = [int(e.data.get("step", e.step or 0)) for e in self.events(NAN_LOSS)]
        if since or not len(self):
            return np.asarray(nan & (self.step >= min(since, default=0)))
        return nan if np.isfinite(self.loss).mean() > OTHERWISE_KNOWN else np.zeros_like(nan)

    @cached_property
    def loss_sentence(self) -> str:
        """How the loss went, for evidence: not recorded, NaN, or its figures."""
        trend = self.loss_trend
        if trend.known:
            return f"The loss: {trend.start:.4g} at the start, {trend.end:.4g} at the end."
        if self.loss_nan.any():
            return f"The loss is NaN in {percent(float(self.loss_nan.mean()))} of the steps."
        return "The loss is not recorded."

    @cached_property
    def loss_trend(self) -> LossTrend:
        """How the loss went over the usable steps."""
        return loss_trend(self.loss[~self.skipped])

    @cached_property
    def spikes(self) -> Array:
        """Places of the spikes among the usable steps."""
        return spikes(self.norm[self.usable], losses=self.loss[self.usable])

    @cached_property
    def lost(self) -> bool:
        """Whether gradients with a NaN or inf reached the weights: what follows is their mark."""
        return bool((self.broken & ~self.skipped).any())

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

    @property
    def stuck(self) -> bool:
        """Whether the loss stalls although the weights had a chance to lower it.

        Where the learning rate, or the shortness of the run, kept every weight next to where it
        began, a loss that has not moved yet says nothing of the gradients.
        """
        return self.loss_trend.stalled and not self.travel < SHORT

    @cached_property
    def last_loss_broken(self) -> bool:
        """Whether losses were known and the last ones are NaN or inf."""
        tail = self.loss[-max(1, len(self) // 20) :]
        return bool(np.isfinite(self.loss).any() and len(tail) and not np.isfinite(tail).any())


# ---- statistics -----------------------------------------------------------------------


def loss_trend(losses: Array) -> LossTrend:
    """Summarise a loss curve.

    Args:
        losses: one a step; NaN where unknown.

    Returns:
        The trend; `known` is False where fewer than `ENOUGH` losses are finite.

    Example:
        >>> t = loss_trend(np.linspace(2.0, 1.0, 100))
        >>> t.stalled, round(t.fall, 2)
        (False, 0.47)
    """
    finite = losses[np.isfinite(losses)]
    if len(finite) < ENOUGH:
        return LossTrend()
    thin = blocks(finite)
    window = max(3, len(thin) // 12)
    smooth = running_median(thin, window)[window - 1 :]
    noise = spread(thin[window - 1 :] - smooth)
    swing = float(np.median(np.abs(np.diff(finite))))
    later = smooth[1:] if len(smooth) > 1 else smooth
    ends = (
        float(finite[:3].min()),
        float(smooth[0]),
        float(smooth[len(smooth) // 2]),
        float(smooth[-1]),
    )
    extremes = (float(smooth.min()), float(later.max()))
    return LossTrend(True, *ends, *extremes, noise, swing, window)


def order_agreement(values: Array | Sequence[float]) -> float:
    """Kendall's tau of the finite values against their place: 1 rising, -1 falling.

    Example:
        >>> order_agreement([1.0, 2.0, 3.0]), order_agreement([3.0, 2.0, 1.0])
        (1.0, -1.0)
    """
    array = np.asarray(values, dtype=np.float64)
    array = array[np.isfinite(array)]
    if len(array) > 200:
        array = array[np.linspace(0, len(array) - 1, 200).astype(np.int64)]
    if len(array) < 2:
        return math.nan
    upper = np.triu_indices(len(array), 1)
    return float(np.sign(array[None, :] - array[:, None])[upper].mean())


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


def owner_names(view: View) -> list[str]:
    """The module of each tensor: a weight and its bias stand or fall together."""
    return [".".join(parts(t)[:-1]) or t.name for t in view.tensors]


def is_cell(tensor: TensorInfo) -> bool:
    """Whether a tensor is of a recurrent layer or cell, used once per time step."""
    recurrent = parts(tensor)[-1].startswith(("weight_hh", "recurrent_kernel"))
    return recurrent or any(kind in tensor.module for kind in ("RNN", "LSTM", "GRU", "Cell"))


def number(value: float) -> str:
    """A figure as findings print it: three digits, no noise.

    Example:
        >>> number(0.0001234), number(1234567.0), number(3.0), number(float("inf"))
        ('0.000123', '1.23e+06', '3', 'inf')
    """
    return f"{value:.3g}"


def percent(share: float) -> str:
    """A share as findings print it.

    Example:
        >>> percent(0.0812), percent(1.0)
        ('8.1 %', '100 %')
    """
    value = 100 * share
    return f"{value:.0f} %" if value >= 10 or value == 0 else f"{value:.1f} %"
