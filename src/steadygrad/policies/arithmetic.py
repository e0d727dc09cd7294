"""What was done to gradients, told from figures before and after: a clip, or something else.

A clip that a script writes as arithmetic is no call that could be seen. What it leaves tells it
from a division by the number of micro-batches, from noise and from weight decay.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple, cast

import numpy as np

from steadygrad.policies.in_numpy import NUMPY
from steadygrad.policies.stepping import compare, unit_of
from steadygrad.stats import GradientStats

if TYPE_CHECKING:
    from steadygrad.typing import Array

LOOKED_AT = 8
"""Steps of each optimizer that are looked at."""

_SAME = 1e-6
COARSE, FINE = 1e-2, 1e-4
"""How far the limit of a clip is missed: by gradients of two bytes an element, and of more."""


class Change(NamedTuple):
    """What was made of a step's gradients.

    Attributes:
        limit: over which they, or their parts, were cut; NaN where that is not what was done.
        factor: what all were multiplied by; NaN where they were not treated alike.
        parts: how many tensors were cut at the limit, where not all were treated alike.
    """

    limit: float = math.nan
    factor: float = math.nan
    parts: int = 0


def change_of(before: GradientStats, after: GradientStats, near: float = FINE) -> Change | None:
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
        Change(limit=1.0, factor=0.2, parts=0)
        >>> change_of(figures(3.0, 1.0), figures(2.0, 1.0))
        Change(limit=2.0, factor=nan, parts=1)
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
    alike = np.isclose(now, was * factor, rtol=near, atol=near * left)
    alike &= np.isclose(most_now, most_was * factor, rtol=near, atol=near * most_now.max())
    if alike.all():
        return Change(left if factor < 1 else math.nan, factor)
    by_value, by_norm = (most_now, most_was), (now, was)
    for figures, earlier in (by_value, by_norm) if _is_bound(before, after, near) else (by_norm,):
        limit = float(figures[moved].max())
        cut = np.isclose(figures[moved], limit, rtol=near, atol=0) & (earlier[moved] >= limit)
        if figures is now:  # all of a tensor is scaled
            scaled = most_was[moved] * now[moved] / np.where(was[moved] > 0, was[moved], 1.0)
            cut &= np.isclose(most_now[moved], scaled, rtol=near, atol=0)
        if cut.all() and (figures <= limit * (1 + near)).all():
            return Change(limit, parts=len(cut))
    return Change()


def _is_bound(before: GradientStats, after: GradientStats, near: float) -> bool:
    """Whether a bound on elements leaves such figures.

    It lets small elements be: signs alone end at one value all, and the elements of a tensor that
    is divided by its largest one shrink alike.
    """
    was, now = np.asarray(before.norms), np.asarray(after.norms)
    most_was, most_now = np.asarray(before.max_abs), np.asarray(after.max_abs)
    sizes = np.asarray(after.sizes)
    with np.errstate(all="ignore"):
        all_at_it = now >= most_now * np.sqrt(sizes) * (1 - near)
        alike = np.isclose(now / was, most_now / most_was, rtol=near, atol=0)
    moved = (now < was) & (sizes > 1)
    never_grew = bool((now <= was * (1 + near)).all())
    return never_grew and not (moved.any() and (all_at_it | alike)[moved].all())


class Left(NamedTuple):
    """What a change left of gradients: as `policies.stepping.compare` has it."""

    coef: float
    cosine: float
    clipped: bool


def left_by(change: Change, before: GradientStats, after: GradientStats) -> Left:
    """What a clip left.

    Args:
        change: as `change_of` told it from both.
        before: figures before it, on the host.
        after: and behind it.

    Returns:
        Coefficient, cosine (NaN where the figures do not tell), and that something was changed.

    Example:
        >>> figures = lambda *norms: GradientStats(
        ...     ("a", "b"), np.array(norms), np.array(norms), np.zeros(2), np.zeros(2), (1, 1),
        ...     float(np.linalg.norm(norms)))
        >>> before, after = figures(3.0, 4.0), figures(0.6, 0.8)
        >>> left_by(change_of(before, after), before, after)
        Left(coef=0.2, cosine=1.0, clipped=True)
    """
    if not math.isnan(change.factor):
        return Left(change.factor, 1.0, True)
    with np.errstate(all="ignore"):
        unit = np.asarray(unit_of(NUMPY, before.norms))
        unknown = np.full(len(before.names), math.nan)
        left = np.asarray(after.norms) / unit
        coef, cosine, _ = compare(NUMPY, before, left, unknown, cast("Array", np.True_))
    return Left(float(coef), float(cosine), True)


class ChangesOfOnePlace:
    """What gradients were changed by between the same two places of a script, so far.

    Attributes:
        is_clip: the last one was a clip.
        limit: its limit; inf before any.
        only_divides: all gradients were divided by a whole number, or by one number so far.
    """

    def __init__(self) -> None:
        self.is_clip = False
        self.limit = math.inf
        self.only_divides = True
        self._last = Change()
        self._changes = self._alike = 0
        self._varies = False
        self._left = math.inf

    def left_alone(self, norm: float) -> None:
        """Gradients of this norm were not changed."""
        self._left = norm

    def accepts(self, change: Change, near: float) -> bool:
        """Take note of a change; whether it is a clip.

        One factor for all may be a mean over samples, or a rate. A clip leaves the same norm at
        every step, or cuts several tensors to one figure. One whose limit varies lets steps
        between those that it cuts pass, and the norms of these are below the limit.
        """
        last, self._last = self._last, change
        left, self._left = self._left, math.inf
        self._changes += 1
        is_one = math.isclose(change.factor, last.factor, rel_tol=near)
        divides = not math.isnan(change.factor) and _divides(change.factor)
        self.only_divides = divides or is_one or (self._changes == 1 and change.factor > 0)
        ends_alike = math.isclose(change.limit, last.limit, rel_tol=near)
        if math.isnan(change.limit) or (is_one and not ends_alike):
            self._alike, self._varies = 0, False  # one of these norms was round by chance
            self.is_clip, self.limit = False, math.inf
            return False
        limits = sorted((change.limit, last.limit))
        if change.factor < 1 and left <= limits[1] < 1.5 * limits[0]:
            self._varies = True
        was_clear = self._alike > 1
        self._alike = self._alike + 1 if ends_alike else 0
        sure = near / 10 if near < COARSE else COARSE  # a norm may be round by chance
        is_typed = _typed(change.limit, sure) is not None and not divides
        self.is_clip = (
            ends_alike
            or was_clear  # the limit is another one from here on: the next step tells
            or change.parts > 1
            or self._varies
            or (self._changes == 1 and is_typed)
        )
        if not self.is_clip:
            self.limit = math.inf
        elif not math.isclose(change.limit, self.limit, rel_tol=near):
            self.limit = _typed(change.limit, near) or change.limit
        return self.is_clip


def _typed(limit: float, near: float) -> float | None:
    """The number of two digits that a person has typed for a limit; None where none is near.

    Example:
        >>> _typed(0.99999, 1e-4), _typed(0.2500001, 1e-4), _typed(1.234, 1e-4)
        (1.0, 0.25, None)
    """
    short = float(f"{limit:.1e}")
    return short if near < COARSE and math.isclose(limit, short, rel_tol=near) else None


def _divides(factor: float) -> bool:
    """Whether a factor is one over a whole number.

    Example:
        >>> _divides(0.25), _divides(0.3)
        (True, False)
    """
    by = 1 / factor
    return math.isclose(by, round(by), rel_tol=FINE)
