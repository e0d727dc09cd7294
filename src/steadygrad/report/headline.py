"""One sentence that says how a run went; the same in the report, the terminal and `run`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from steadygrad.calibration.unseen import unseen_clip
from steadygrad.report.numbers import figure
from steadygrad.report.optimizers import name_of, rows_of_each
from steadygrad.rules import NOTHING
from steadygrad.rules.evidence.losses import LossTrend
from steadygrad.rules.evidence.view import View
from steadygrad.runlog.shortfall import shortfall
from steadygrad.text import times

if TYPE_CHECKING:
    from steadygrad.rules import Finding
    from steadygrad.runlog import Run

UNSCALED = 1e6
"""A median norm that inputs and targets of unit size do not give."""
BROKEN, FAULT = "Broken", "Fault found"
"""What an error is called: the first only where gradients were not finite."""
WORDS = {"error": FAULT, "warning": "Needs attention", "ok": "Steady", "empty": "Nothing seen"}
MOST_LOSSES = 3


@dataclass(frozen=True)
class Verdict:
    """How a run went.

    Attributes:
        level: ``error``, ``warning``, ``ok`` or ``empty``.
        word: the level in a word or two.
        sentence: what happened, one sentence; another says which steps are not on record.
    """

    level: str
    word: str
    sentence: str


def verdict(run: Run, findings: Sequence[Finding]) -> Verdict:
    """Sum a run up.

    Args:
        run: the run.
        findings: what `diagnose` said of it, the gravest first.

    Returns:
        The verdict: the gravest finding's own sentence, or what was steady.

    Example:
        >>> import numpy as np
        >>> from steadygrad.runlog import Run
        >>> falling = {"norm": np.linspace(1.0, 2.0, 50), "loss": np.linspace(2.0, 0.5, 50)}
        >>> verdict(Run.from_arrays(steps=falling), []).sentence
        'Steady over 50 steps: the gradient norm stayed within 1.33 times its median, ...'
    """
    judgement = _judged(run, findings)
    missing = shortfall(run.info, run.events)
    return replace(judgement, sentence=f"{judgement.sentence} {missing}") if missing else judgement


def _judged(run: Run, findings: Sequence[Finding]) -> Verdict:
    if not len(run):
        return _made("empty", "No optimizer step was recorded, so nothing can be said of this run.")
    if [f.id for f in findings] == [NOTHING]:
        return _made("empty", _sentence(findings[0].title))
    grave = [f for f in findings if f.severity in ("error", "warning")]
    if grave:
        judgement = _made(grave[0].severity, _sentence(grave[0].title))
        broke = judgement.word == FAULT and not np.isfinite(run.steps["norm"]).all()
        return replace(judgement, word=BROKEN) if broke else judgement
    return _made("ok", _steady(run))


def _made(level: str, sentence: str) -> Verdict:
    return Verdict(level, WORDS[level], sentence)


def _sentence(title: str) -> str:
    return title if title.endswith((".", "!", "?")) else f"{title}."


def _steady(run: Run) -> str:
    """Each optimizer by its own median: those of three trainings in one script have no common."""
    of_each = {n: run.steps[View(run, n).rows] for n in rows_of_each(run)}
    usable = {n: norm for n, rows in of_each.items() if (norm := _usable(rows)).size}
    count = f"{len(run):,} step" + "s" * (len(run) > 1)
    if not usable:
        return f"{count} recorded, none with a gradient norm over 0: there is nothing to judge."
    ratios = {n: float(norm.max() / np.median(norm)) for n, norm in usable.items()}
    furthest = max(ratios, key=lambda n: ratios[n])
    ratio, rows = times(ratios[furthest]), of_each[furthest]
    norm = np.asarray(rows["norm"])
    peak = rows[np.nanargmax(np.where(np.isfinite(norm), norm, -1.0))]
    alone = len(of_each) == 1
    over = f"{count}" if alone else f"{count} of {len(of_each)} optimizers"
    clips = [n for n in of_each if unseen_clip(run, n) is not None]
    if clips:
        whose = "" if alone else f" by {' and '.join(name_of(run, n) for n in clips[:MOST_LOSSES])}"
        return (
            f"Steady over {over}, as far as can be seen: gradients are clipped out of sight{whose}"
            f"{_losses(run, list(of_each))}."
        )
    the = "the gradient norm" if alone else "each one's gradient norm"
    steady = f"Steady over {over}: {the} stayed within {ratio} its median"
    if peak["action"] == "clip":
        the = "the" if alone else "their optimizer's"
        steady = f"Steady over {over}: norms of up to {ratio} {the} median came, and were clipped"
    return f"{steady}{_losses(run, list(of_each))}{_size(usable)}."


def _size(usable: Mapping[int, NDArray[np.float64]]) -> str:
    """A word on norms that are steady, and of a size that says nothing was scaled."""
    largest = max(float(np.median(norm)) for norm in usable.values())
    if largest < UNSCALED:
        return ""
    return f"; a median norm of {figure(largest)} says that inputs, targets or loss are not scaled"


def _usable(rows: Any) -> NDArray[np.float64]:
    norm: NDArray[np.float64] = np.asarray(rows["norm"])
    return norm[np.isfinite(norm) & (norm > 0)]


def _losses(run: Run, numbers: Sequence[int]) -> str:
    """Whether the loss fell, of each optimizer: a steady norm says nothing of that."""
    trends = {n: trend for n in numbers if (trend := View(run, n).loss_trend).recorded}
    if not trends:
        return "; too few losses were recorded to say whether the training got anywhere"
    by_optimizer = {n: _loss(trend) for n, trend in trends.items()}
    if len(numbers) == 1 or (
        len(set(by_optimizer.values())) == 1 and len(by_optimizer) == len(numbers)
    ):
        joint, what = next(iter(by_optimizer.values()))
        return f"{joint} the loss {what}"
    if len(by_optimizer) > MOST_LOSSES:
        return ""
    return "; the loss " + ", ".join(
        f"{what} (optimizer {n})" for n, (_, what) in by_optimizer.items()
    )


def _loss(trend: LossTrend) -> tuple[str, str]:
    """How to join what is said to a steady norm, and what the loss did."""
    span = f"from {figure(trend.start)} to {figure(trend.end)}"
    if trend.signed:
        return ";", f"went {span}"
    if figure(trend.start) == figure(trend.end):
        return ", but", f"ended where it began, at {figure(trend.end)}"
    if trend.end > trend.start and not trend.home:
        return ", but", f"rose {span}"
    if trend.stalled:
        return ", but", f"hardly fell: {span}"
    return ", and", f"fell {span}"
