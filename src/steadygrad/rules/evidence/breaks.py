"""The story of the first NaN or inf, told once for the rules that share it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from steadygrad.robust import median
from steadygrad.rules.evidence.steps import Array
from steadygrad.rules.evidence.view import View
from steadygrad.rules.evidence.wording import number, percent

HUGE, FEW = 1e6, 4
"""A norm that no training begins with, and the first steps, at which it is looked for."""
GROWTH = 10.0
"""Factor over the ordinary norm from which an explosion is said to have led to the break."""
SURE = 100.0
"""The same while the loss falls: norms rise where a training begins to learn."""
LATE, EARLIER = 5, 8
"""Steps before the break whose losses are compared with those before them, of which so many."""


@dataclass(frozen=True)
class Break:
    """The first step with non-finite gradients.

    Attributes:
        index: its place in the view.
        step: its number.
        tensors: the broken tensors, the nearest to the loss first.
        infinite: those among them that hold inf and no NaN.
        measured: number of tensors measured at that step.
        before: the last finite norms before it, oldest first.
        growth: the largest of them over what was ordinary; 1 where nothing came before.
        learning: whether the loss was lower in the last steps before it than earlier.
        applied: whether the broken gradients reached the weights.
        dropped: whether the script must have dropped them, since what followed was sound.
        lost: whether every later step is broken too, and there is at least one.
        share: share of all steps that are broken.
    """

    index: int
    step: int
    tensors: tuple[str, ...]
    infinite: tuple[str, ...]
    measured: int
    before: Array
    growth: float
    learning: bool
    applied: bool
    dropped: bool
    lost: bool
    share: float

    @property
    def exploded(self) -> bool:
        """Whether growing norms, or norms that were huge from the start, led to the break."""
        return self.growth >= (SURE if self.learning else GROWTH) or self.huge

    @property
    def huge(self) -> bool:
        """Whether there was no ordinary size to grow from: the first norms say it all."""
        return bool(self.before.size and self.index < FEW and self.before[0] > HUGE)

    @property
    def last_good(self) -> str:
        """A sentence on the last step whose gradients were finite."""
        if not self.before.size:
            return "No step of this run was good."
        return f"Step {self.step - 1} is the last good one."


def first_break(view: View) -> Break | None:
    """The story, or None where every gradient is finite or a loss scale's search explains it.

    A scaler that meets an overflow now and then, skips the step and goes on is doing its work.

    Args:
        view: the run.

    Returns:
        The break.
    """
    if not view.broken.any() or scaler_at_work(view):
        return None
    index = view.first_broken
    names, infinite, measured = _broken_tensors(view, index)
    after = view.broken[index + 1 :]
    before = view.norm[:index][view.usable[:index]]
    return Break(
        index=index,
        step=int(view.step[index]),
        tensors=names,
        infinite=infinite,
        measured=measured,
        before=before[-5:],
        growth=_growth(view, index, before),
        learning=_learning(view.loss[:index]),
        applied=not view.skipped[index],
        dropped=bool(view.dropped[index]),
        lost=bool(after.size and after.all()),
        share=float(view.broken.mean()),
    )


def scaler_at_work(view: View) -> bool:
    """Whether all that broke is a loss scale's search, which skips a step now and then."""
    if not view.amp:
        return False
    applied = view.broken & ~view.skipped
    tail = view.broken[-5:]
    return not applied.any() and not tail.all() and view.broken.mean() < 0.34


def _learning(losses: Array) -> bool:
    losses = losses[np.isfinite(losses)]
    if len(losses) < LATE + EARLIER:
        return False
    earlier = median(losses[:-LATE])
    return median(losses[-LATE:]) < earlier - 0.05 * abs(earlier)


def _growth(view: View, index: int, before: Array) -> float:
    if not before.size:
        return 1.0
    base = median(before[:-5]) if len(before) > 8 else float(np.min(before))
    by_norm = float(before[-5:].max()) / max(base, 1e-300)
    losses = view.loss[: index + 1]
    finite = np.abs(losses[np.isfinite(losses)])
    by_loss = float(finite[-3:].max()) / max(median(finite), 1e-12) if finite.size > 1 else 1.0
    return max(by_norm, by_loss)


def _broken_tensors(view: View, index: int) -> tuple[tuple[str, ...], tuple[str, ...], int]:
    row = int(np.searchsorted(view.rows_read, index))
    norms = view.norms[row]
    measured = int((~np.isnan(norms) | (view.figures("nonfinite")[row] > 0)).sum())
    bad = np.flatnonzero((view.figures("nonfinite")[row] > 0) | np.isinf(norms))[::-1]
    names = tuple(view.tensors[i].name for i in bad)
    return names, tuple(view.tensors[i].name for i in bad if np.isinf(norms[i])), measured


def tell(view: View, story: Break) -> list[str]:
    """The evidence sentences that every non-finite finding shares."""
    said = [
        _where(story, "the last of them" if view.framework == "jax" else "the nearest to the loss")
    ]
    if story.before.size:
        run = ", ".join(number(v) for v in story.before)
        said.append(f"Gradient norms of the last finite steps before it: {run}.")
    else:
        said.append("No step before it had finite gradients.")
    said.append(_order(view, story))
    said.append(_aftermath(story))
    return [sentence for sentence in said if sentence]


def _where(story: Break, place: str) -> str:
    if not story.tensors:
        return f"The total norm is not finite at step {story.step}."
    first = story.tensors[0]
    kind = "inf" if first in story.infinite else "NaN"
    count = f"{len(story.tensors)} of {story.measured} tensors are broken"
    return f"Step {story.step} is the first with {kind}; {count}, {first} {place}."


def _order(view: View, story: Break) -> str:
    if story.infinite and len(story.infinite) < len(story.tensors):
        return f"inf (in {story.infinite[0]}) and NaN appear together at step {story.step}."
    later = view.norm[story.index + 1 :]
    if story.infinite and np.isnan(later).any():
        nan_at = int(view.step[story.index + 1 + int(np.flatnonzero(np.isnan(later))[0])])
        return f"inf came first, at step {story.step}; NaN followed at step {nan_at}."
    return ""


def _aftermath(story: Break) -> str:
    if story.lost and story.applied:
        return (
            f"Every later step is broken: the weights are lost since step {story.step}; "
            f"clipping cannot recover them. {story.last_good}"
        )
    if story.lost:
        return "Every later step is broken too, although the broken ones were skipped."
    if story.applied:
        return f"{percent(story.share)} of the steps are broken, and were applied to the weights."
    if story.dropped:
        return (
            f"{percent(story.share)} of the steps are broken; the weights were sound afterwards, "
            "so the script must have dropped them."
        )
    return (
        f"{percent(story.share)} of the steps are broken; they were skipped, and training went on."
    )
