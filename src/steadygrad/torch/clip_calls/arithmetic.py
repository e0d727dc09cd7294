"""Clips that a script writes as arithmetic: gradients that change, and no clip call to be seen.

`for p in params: p.grad.mul_(limit / norm)` is a clip, whether it stands between backward and step
or inside an optimizer's own `step`. Figures of the gradients before and after tell it from a
division by the number of micro-batches, from noise and from weight decay.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from steadygrad import kernels
from steadygrad.stats import GradientStats
from steadygrad.torch.gradients.outcome import UNTOUCHED, Applied, compare, unit_of

LOOKED_AT = 8
"""Steps of each optimizer that are looked at."""
MOST_READ = 64
"""Backward passes that are read for them at most."""

_SAME = 1e-6
_COARSE, _FINE = 1e-2, 1e-4
"""How far the limit of a clip is missed: by gradients of two bytes an element, and of more."""


class Change(NamedTuple):
    """What was made of a step's gradients.

    Attributes:
        limit: over which they, or their parts, were cut; NaN where that is not what was done.
        factor: what all were multiplied by; NaN where they were not treated alike.
    """

    limit: float = math.nan
    factor: float = math.nan


def change_of(before: GradientStats, after: GradientStats, near: float = _FINE) -> Change | None:
    """What turned some gradients into others.

    Args:
        before: figures of the ones, on the host.
        after: of the others.
        near: how far, relatively, figures may be from each other that are meant to be the same.

    Returns:
        The change; None where there was none, or where figures are not finite.

    Example:
        >>> figures = lambda *norms: GradientStats(
        ...     ("a", "b"), np.array(norms), np.array(norms), np.zeros(2), np.zeros(2), (1, 1),
        ...     float(np.linalg.norm(norms)))
        >>> change_of(figures(3.0, 4.0), figures(0.6, 0.8))
        Change(limit=1.0, factor=0.2)
        >>> change_of(figures(3.0, 1.0), figures(2.0, 1.0))
        Change(limit=2.0, factor=nan)
        >>> change_of(figures(3.0, 4.0), figures(3.0, 4.0)) is None
        True
    """
    was, now = np.asarray(before.norms), np.asarray(after.norms)
    total, left = float(before.total_norm), float(after.total_norm)
    if not (math.isfinite(total) and math.isfinite(left)):
        return None
    most_was, most_now = np.asarray(before.max_abs), np.asarray(after.max_abs)
    moved = ~np.isclose(now, was, rtol=_SAME, atol=0) | ~np.isclose(
        most_now, most_was, rtol=_SAME, atol=0
    )
    if not moved.any():
        return None
    if not now.any():
        return Change()  # cleared
    factor = left / total if total else math.nan
    if bool(np.isclose(now, was * factor, rtol=near, atol=near * left).all()):
        return Change(left if factor < 1 else math.nan, factor)
    for figures, earlier in ((most_now, most_was), (now, was)):  # by value, or each tensor's norm
        limit = float(figures[moved].max())
        cut = np.isclose(figures[moved], limit, rtol=near, atol=0) & (earlier[moved] >= limit)
        if cut.all() and (figures <= limit * (1 + near)).all():
            return Change(limit)
    return Change()


class HandChanges:
    """Whether a script changes the gradients of one optimizer by arithmetic, and how.

    Args:
        tell: given a sentence, where they are changed otherwise than by a clip.
        name: of the optimizer's class.

    Attributes:
        looks: gradients are to be read after each backward.
        thread: in which it has stepped last; 0 before that.
        looks_inside: they are to be compared after the optimizer's own step.
    """

    def __init__(self, tell: Callable[[str], None], name: str) -> None:
        self._tell, self._name = tell, name
        self._reading: tuple[list[int], bytearray] | None = None
        self._steps = self._read = 0
        self._between, self._inside = _Kind(), _Kind()
        self.looks = self.looks_inside = True
        self.thread = 0

    def after_backward(self, parameters: Sequence[torch.Tensor]) -> None:
        """A backward is over, which may have reached these."""
        with_grads = [p for p in parameters if p.grad is not None]
        self._reading = None
        self._read += 1
        if not with_grads:
            self._may_rest()
            return
        sealed = kernels.seal([p.grad for p in with_grads if p.grad is not None])
        if sealed is None:  # on a device, or in pieces: what is there is not compared
            self.looks = False
            return
        self._reading = list(map(id, with_grads)), sealed
        self._may_rest()

    @property
    def has_clipped(self) -> bool:
        """Whether a clip was found."""
        return self._between.is_clip or self._inside.is_clip

    def forget(self) -> None:
        """Gradients come from elsewhere now than from the last backward."""
        self._reading = None

    def stepped(self) -> None:
        """A step begins; to be called alone where a clip call was seen before it."""
        self.thread = threading.get_ident()
        self._steps += 1
        self._may_rest()
        self.forget()

    def _may_rest(self) -> None:
        looked = self._steps >= LOOKED_AT or self._read >= MOST_READ
        self.looks = self.looks and (self._between.is_clip or not looked)
        self.looks_inside = self.looks_inside and (self._inside.is_clip or self._steps <= LOOKED_AT)

    def between(
        self, params: Sequence[torch.Tensor], after: GradientStats
    ) -> tuple[GradientStats, float, Applied]:
        """A step begins, before which no clip call was seen.

        Args:
            params: with gradients.
            after: figures of these as they are now.

        Returns:
            Figures before what the script has done to them, its limit, and what that left; for
            what is no clip the figures now.
        """
        reading = self._reading
        self.stepped()
        before = None
        if reading is not None and reading[0] == list(map(id, params)):
            before = _opened(reading[1], after)
        change = None
        if before is not None and isinstance(after.total_norm, float):
            change = self._judged(self._between, before, after, params)
        if before is None or change is None:
            return after, self._between.limit, UNTOUCHED
        return before, change.limit, _applied(change, before, after)

    def inside(
        self, params: Sequence[torch.Tensor], before: GradientStats, after: GradientStats
    ) -> tuple[float, Applied]:
        """The optimizer's own step is over, in which no clip call was seen.

        Args:
            params: with gradients.
            before: their figures before it.
            after: and now.

        Returns:
            The limit of a clip in it, and what that left.
        """
        self._may_rest()
        change = None
        if isinstance(before.total_norm, float) and before.names == after.names:
            change = self._judged(self._inside, before, after, params)
        if change is None:
            return self._inside.limit, UNTOUCHED
        return change.limit, _applied(change, before, after)

    def _judged(
        self,
        kind: _Kind,
        before: GradientStats,
        after: GradientStats,
        params: Sequence[torch.Tensor],
    ) -> Change | None:
        """The change, where it is a clip."""
        coarse = any(p.grad is not None and p.grad.element_size() < 4 for p in params)
        change = change_of(before, after, _COARSE if coarse else _FINE)
        if change is None:
            return None
        if kind.accepts(change, _COARSE if coarse else _FINE):
            self._may_rest()
            return change._replace(limit=kind.limit)
        if kind is self._between and after.total_norm and not kind.only_divides(change):
            self._tell(
                f"the script changes the gradients of its {self._name} by itself between "
                "backward() and step(), and not as a clip does: norms on record are those after. "
                "Where that is meant to clip, type torch.nn.utils.clip_grad_norm_ in its place"
            )
        return None


class _Kind:
    """What changes of one place have been so far."""

    def __init__(self) -> None:
        self.is_clip = False
        self.limit = math.inf
        self._last = Change()

    def accepts(self, change: Change, near: float) -> bool:
        """Take note of a change; whether it is a clip.

        One factor for all may be a mean over micro-batches: that is one over a whole number, and
        the same at every step. A clip leaves the same norm at every step.
        """
        last, self._last = self._last, change
        if math.isnan(change.limit):
            return False
        ends_alike = math.isclose(change.limit, last.limit, rel_tol=near)
        if math.isclose(change.factor, last.factor, rel_tol=near) and not ends_alike:
            self.is_clip, self.limit = False, math.inf  # one of these norms was round by chance
        elif not self.is_clip:
            may_be = math.isnan(change.factor) or not _divides(change.factor)
            is_typed = math.isnan(change.factor) or _typed(change.limit, near) != change.limit
            is_first = math.isnan(last.factor)
            self.is_clip = ends_alike or (may_be and (is_typed or is_first))
        if self.is_clip and not math.isclose(change.limit, self.limit, rel_tol=near):
            self.limit = _typed(change.limit, near)
        return self.is_clip

    def only_divides(self, change: Change) -> bool:
        """Whether all were multiplied by one factor, which no clip need be."""
        return not math.isnan(change.factor)


def _typed(limit: float, near: float) -> float:
    """The number of two digits that a person has typed for a limit; itself where none is near.

    Example:
        >>> _typed(0.99999, 1e-4), _typed(0.2500001, 1e-4), _typed(1.234, 1e-4)
        (1.0, 0.25, 1.234)
    """
    short = float(f"{limit:.1e}")
    return short if near < _COARSE and math.isclose(limit, short, rel_tol=near) else limit


def _divides(factor: float) -> bool:
    """Whether a factor is one over a whole number.

    Example:
        >>> _divides(0.25), _divides(0.3)
        (True, False)
    """
    by = 1 / factor
    return math.isclose(by, round(by), rel_tol=_FINE)


def _opened(sealed: bytearray, like: GradientStats) -> GradientStats:
    read = kernels.native.opened(sealed)
    return GradientStats(like.names, *read[:4], like.sizes, read.total)


def _applied(change: Change, before: GradientStats, after: GradientStats) -> Applied:
    if not math.isnan(change.factor):
        return Applied(change.factor, 1.0, True)
    with np.errstate(all="ignore"):
        unit = unit_of(before)
        unknown: Any = np.full(len(before.names), math.nan)
        left = np.asarray(after.norms) / unit
        applied = compare(before, left, unknown, np.True_)
    return applied
