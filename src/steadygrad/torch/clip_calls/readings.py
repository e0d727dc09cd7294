"""Gradients as they were before a script changed them, and what it left of them, in columns.

A reading is of several parameters at once: what is done to all of them is one operation, however
many they are. It knows by their identities and version counters, which every in-place change
raises, whether its gradients are still as it saw them.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Iterable, Sequence
from operator import attrgetter
from typing import Any, NamedTuple

import numpy as np
import torch

from steadygrad import kernels
from steadygrad.kernels import Read, native
from steadygrad.torch.distributed.layout import NOWHERE
from steadygrad.torch.distributed.ownership import spread_of_some
from steadygrad.torch.gradients.measuring import read_whole, unscaled

_GRAD, _VERSION = attrgetter("grad"), attrgetter("_version")
_COLUMNS = frozenset(["norms", "max_abs", "nonfinite", "zeros", "_left"])
_TOUCHED = -2
"""A version that no tensor has."""


class GradientReading:
    """The gradients of some parameters.

    Args:
        params: the parameters; only their ids are kept.
        grads: their gradients; held weakly, and their versions.
        figures: of these gradients now; as C wrote them, they are opened where somebody asks.
        norm_type: the p of the norms.

    Attributes:
        ids: ids of the parameters, in order.
        norms: p-norms before, ``[tensors]``, as are all columns.
        max_abs: largest finite magnitudes before.
        nonfinite: numbers of NaN and inf elements before.
        zeros: numbers of zero elements before.
        total: p-norm of all of them before; None where it was not joined.
        own: of what this rank holds before, as `GradientStats` has it.
        factor: what all were multiplied by since `uneven` was set.
        uneven: whether they were changed otherwise than all by one factor.
        norm_type: the p of the norms.
        threshold: of the last clip call; inf before one.
        sealed: the columns before, as C wrote them; None where they are not, or changed since.

    Example:
        >>> weight = torch.zeros(2, requires_grad=True)
        >>> weight.grad = torch.tensor([3.0, 4.0])
        >>> reading = read([weight], 2.0)
        >>> reading.scale(0.5, EVERY)
        >>> reading.norms.tolist(), reading.left.tolist(), reading.holds([weight])
        ([5.0], [2.5], True)
    """

    def __init__(
        self,
        params: Sequence[torch.Tensor],
        grads: Sequence[torch.Tensor],
        figures: Read | bytearray,
        norm_type: float,
    ) -> None:
        self.sealed = figures if isinstance(figures, bytearray) else None
        self.ids = list(map(id, params))
        self.total: Any
        self.own: Any = None
        if isinstance(figures, bytearray):
            self.total = native.total_of(figures)
        else:
            self._open(figures)
            self.total, self.own = figures.total, figures.own
        self.factor: Any = 1.0
        self.uneven = False
        self._dots: Any = None
        self.norm_type = norm_type
        self.threshold: Any = math.inf
        # not their ids, which the next ones may be given while their versions are as low
        self._grads, self._versions = list(map(weakref.ref, grads)), list(map(_VERSION, grads))

    def _open(self, figures: Read) -> None:
        self.norms, self.max_abs, self.nonfinite, self.zeros = figures[:4]
        self._left: Any = self.norms

    def __getattr__(self, name: str) -> Any:
        # most steps need the total alone, and NumPy is out of the caches when a clip call is made
        if name not in _COLUMNS or self.sealed is None:
            raise AttributeError(name)
        self._open(native.opened(self.sealed))
        return getattr(self, name)

    @property
    def is_usual(self) -> bool:
        """Whether one factor on the host says all: nothing broken, nothing lost."""
        total, factor = self.total, self.factor
        if self.uneven or not (isinstance(total, float) and isinstance(factor, float)):
            return False
        return math.isfinite(total) and factor > 0

    @property
    def left(self) -> Any:
        """p-norms after."""
        return self._left * self.factor

    @property
    def dots(self) -> Any:
        """Inner products of before and after; NaN where unknown."""
        if self._dots is None:
            self._dots = self.norms * (self.norms if self.norm_type == 2.0 else math.nan)
        return self._dots * self.factor

    def _set(self, where: Places, left: object, dots: object) -> None:
        """Set norms after and inner products for some of the gradients only."""
        every_left, every_dots = self.left, self.dots  # new arrays
        every_left[where], every_dots[where] = left, dots
        self._left, self._dots, self.factor, self.uneven = every_left, every_dots, 1.0, True

    def holds(self, params: Sequence[torch.Tensor]) -> bool:
        """Whether nothing has touched these parameters' gradients, all of the reading's."""
        return native.are_those(list(params), self._grads, self._versions)

    def holds_one(self, place: int, parameter: torch.Tensor) -> bool:
        """Whether nothing has touched one of them."""
        grad = parameter.grad
        same = grad is not None and self._grads[place]() is grad
        return same and self._versions[place] == _VERSION(grad)

    def mark(self, grads: Sequence[torch.Tensor], where: Places) -> None:
        """Note the gradients' new versions: the reading accounts for that change."""
        versions = list(map(_VERSION, grads))
        if where is EVERY:
            self._versions = versions
        else:
            for place, version in zip(where, versions, strict=True):
                self._versions[place] = version

    def forget(self, ids: set[int]) -> None:
        """Discard the figures of these parameters."""
        for place, each in enumerate(self.ids):
            if each in ids:
                self._versions[place] = _TOUCHED

    def scale(self, coef: object, where: Places) -> None:
        """Gradients were multiplied by a coefficient."""
        if where is EVERY:
            self.factor = self.factor * coef
        else:
            self._set(where, self.left[where] * coef, self.dots[where] * coef)

    def clamp(self, where: list[int], left: Any, dots: Any) -> None:
        """Gradients were clamped: norms after, inner products with what stood before the clamp."""
        before, now, dots_before = self.norms[where], self.left[where], self.dots[where]
        with np.errstate(all="ignore"):
            shrunk = now / before
            new_dots = dots / shrunk
        if isinstance(new_dots, np.ndarray):
            new_dots = np.where(before == 0, dots, np.where(shrunk == 0, dots_before, new_dots))
        self._set(where, left, new_dots)

    def unscale(self, scale: Any) -> None:
        """The gradients were divided by the loss scale."""
        by = scale if isinstance(self.norms, torch.Tensor) else float(scale)
        self._dots = self.dots / (by * by)
        self._left, self.factor = self.left / by, 1.0
        self.norms, self.max_abs, self.total = self.norms / by, self.max_abs / by, None
        self.sealed = None
        self.own = self.own if self.own is None else unscaled(self.own, by)
        self.uneven = True
        self.threshold = self.threshold / by

    def part(self, where: Iterable[int]) -> GradientReading:
        """Some of it, as a reading of its own; itself where that is all of it, in its order."""
        places = list(where)
        if places == list(range(len(self.ids))):
            return self
        return joined([(self, place) for place in places])


EVERY = slice(None)
Places = Any
"""Which of a reading's parameters: `EVERY`, or a list of places."""


class Part(NamedTuple):
    """What one clip call found in one reading."""

    reading: GradientReading
    where: Places
    grads: list[torch.Tensor]


def read(
    params: Sequence[torch.Tensor],
    norm_type: float,
    grads: Sequence[torch.Tensor] | None = None,
) -> GradientReading:
    """Read gradients once.

    Args:
        params: with gradients.
        norm_type: p of the norms.
        grads: theirs, where they are at hand, or do not stand in ``.grad``.

    Returns:
        The reading, nothing changed yet.
    """
    spread = spread_of_some(params, _say_nothing)
    grads = list(map(_GRAD, params) if grads is None else grads)
    sealed = None
    if norm_type == 2.0 and spread[0] is NOWHERE:
        sealed = kernels.seal(grads)
    if sealed is not None:
        return GradientReading(params, grads, sealed, norm_type)
    return GradientReading(params, grads, read_whole(grads, norm_type, *spread), norm_type)


def _say_nothing(sentence: str) -> None:
    """Swallow the sentence: the step that follows compares ranks itself, and warns."""


def joined(rows: Sequence[tuple[GradientReading, int]]) -> GradientReading:
    """Rows of several readings side by side, one at least.

    Args:
        rows: a reading and a place in it, each.

    Returns:
        A reading; of the norms that the first has.
    """
    whole = object.__new__(GradientReading)
    whole.ids = [reading.ids[place] for reading, place in rows]
    whole.norms, whole.max_abs = _column(rows, "norms"), _column(rows, "max_abs")
    whole.nonfinite, whole.zeros = _column(rows, "nonfinite"), _column(rows, "zeros")
    whole._left, whole._dots = _column(rows, "left"), _column(rows, "dots")
    whole.total, whole.own, whole.factor, whole.uneven = None, None, 1.0, True
    whole.sealed = None
    whole.norm_type = rows[0][0].norm_type
    whole.threshold = next((r.threshold for r, _ in rows if _is_set(r.threshold)), math.inf)
    whole._grads = [reading._grads[place] for reading, place in rows]
    whole._versions = [reading._versions[place] for reading, place in rows]
    return whole


def _column(rows: Sequence[tuple[GradientReading, int]], name: str) -> object:
    values = [getattr(reading, name)[place] for reading, place in rows]
    if any(isinstance(value, torch.Tensor) for value in values):
        device = next(value.device for value in values if isinstance(value, torch.Tensor))
        return torch.stack([torch.as_tensor(value, device=device) for value in values])
    return np.array(values)


def _is_set(threshold: object) -> bool:
    return isinstance(threshold, torch.Tensor) or threshold != math.inf
