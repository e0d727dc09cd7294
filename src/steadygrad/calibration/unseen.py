"""A clip that was not seen: norms on record that end at a ceiling, though no call was met.

A clip written by hand, or by a library that has its own, leaves no event. But gradients that were
scaled to a norm have that norm to the last bits, step after step, while their parts differ; and
gradients that were clamped end at the same magnitude in several tensors at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from steadygrad.runlog.encode import RELATIVE_ERROR
from steadygrad.vocabulary import SCRIPT_CLIP

if TYPE_CHECKING:
    from steadygrad.runlog import Run

LEAST_STEPS, LEAST_SHARE = 8, 0.1
"""So many steps, and such a share of them, must end at the ceiling."""
ALIKE = 3e-4
"""Relative distance of norms that were scaled to one threshold: 1e-6 over small norms, rounding."""
VARIES = 0.02
"""Relative change of parts that are not constant by nature."""
LEAST_CLAMP = 1e-4
"""In float16, magnitudes below it may be alike because few numbers are left there."""
KEPT = RELATIVE_ERROR + 1e-6
"""Relative distance of a magnitude on record from the one that was measured, and rounding."""
MOST_READ = 256

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class UnseenClip:
    """A clip that left its mark on the norms alone.

    Attributes:
        level: the norm, or the magnitude of elements, at which it cuts.
        by_value: it bounds elements.
        share: of the usable steps, those that end there.
        steps: numbers of those, at most 50.
    """

    level: float
    by_value: bool
    share: float
    steps: tuple[int, ...]

    @property
    def sentence(self) -> str:
        """What it looks like."""
        what = "largest element" if self.by_value else "norm"
        return f"{100 * self.share:.0f} % of the steps end at a {what} of {self.level:.4g}"


def unseen_clip(run: Run, optimizer: int) -> UnseenClip | None:
    """Look for a ceiling in what is on record of one optimizer.

    Args:
        run: the run.
        optimizer: its number.

    Returns:
        What was found; None where the clip is on record, where there is no ceiling, or where
        gradients may end there by nature.
    """
    rows, mine = run.steps, run.parts[optimizer].rows
    norm = np.asarray(rows["norm"], dtype=np.float64)
    usable = mine[np.isfinite(norm[mine]) & (norm[mine] > 0)]
    seen = np.isfinite(rows["threshold"][usable]) | (np.asarray(rows["coef"][usable]) < 1)
    if usable.size < LEAST_STEPS or seen.any():
        return None
    at = usable[norm[usable] >= norm[usable].max() * (1 - ALIKE)]
    if _often(at, usable) and _parts_vary(run, optimizer, at):
        return _clip_at_level(run, at, usable, float(np.median(norm[at])), by_value=False)
    return _clamped(run, optimizer, usable)


def clipped_before_policy(run: Run, optimizer: int) -> bool:
    """Whether the script's own calls clipped what a policy was then given, and recorded.

    Args:
        run: the run.
        optimizer: its number.
    """
    return any(
        event.kind == SCRIPT_CLIP
        and event.data.get("optimizer") == optimizer
        and "policy" in event.data
        for event in run.events
    )


def _often(at: NDArray[np.intp], usable: NDArray[np.intp]) -> bool:
    return bool(at.size >= max(LEAST_STEPS, LEAST_SHARE * usable.size))


def _columns(run: Run, optimizer: int) -> NDArray[np.int64]:
    several = len(run.parts) > 1
    own = run.parts[optimizer].columns if several else range(len(run.tensors))
    return np.array(own, dtype=np.int64)


def _read(run: Run, optimizer: int, rows: NDArray[np.intp], figure: str) -> Floats:
    """A figure of at most `MOST_READ` of these rows, ``[rows, tensors]``."""
    thin = rows[:: max(1, rows.size // MOST_READ)][:MOST_READ]
    table = run.tensor_rows(thin, _columns(run, optimizer), figure=figure)
    return np.asarray(table, dtype=np.float64)


def _parts_vary(run: Run, optimizer: int, at: NDArray[np.intp], by: float = VARIES) -> bool:
    """Whether single tensors differ from step to step: a constant gradient has a constant norm."""
    table = _read(run, optimizer, at, "norms")
    if table.size == 0 or table.shape[1] < 2:
        return False
    low, high = np.nanmin(table, axis=0), np.nanmax(table, axis=0)
    return bool((high - low > by * np.nanmax(high)).any())


def _clamped(run: Run, optimizer: int, usable: NDArray[np.intp]) -> UnseenClip | None:
    """Whether the largest element is a number that people type, in two tensors or more at once."""
    rows = usable[:: max(1, usable.size // MOST_READ)][:MOST_READ]
    table = _read(run, optimizer, rows, "max_abs")
    if table.size == 0 or table.shape[1] < 2 or not np.isfinite(table).any():
        return None
    highest = float(np.nanmax(table))
    both = (table >= highest * (1 - 1e-6)).sum(axis=1) >= 2
    level = float(f"{highest:.2g}")
    halves = any(run.tensors[i].dtype == "float16" for i in _columns(run, optimizer))
    typed = level >= LEAST_CLAMP * halves and abs(level - highest) <= KEPT * level
    if not typed or not _often(rows[both], rows):
        return None
    if not _parts_vary(run, optimizer, rows[both], 2 * KEPT):  # the same gradients at every step
        return None
    return _clip_at_level(run, rows[both], rows, level, by_value=True)


def _clip_at_level(
    run: Run, at: NDArray[np.intp], usable: NDArray[np.intp], level: float, *, by_value: bool
) -> UnseenClip:
    steps = tuple(int(step) for step in run.steps["step"][at[:50]])
    return UnseenClip(level, by_value, at.size / usable.size, steps)
