"""One sentence that says how a run went; the same in the report, the terminal and `run`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from steadygrad.report.numbers import figure
from steadygrad.rules import NOTHING
from steadygrad.rules.evidence.view import View

if TYPE_CHECKING:
    from steadygrad.rules import Finding
    from steadygrad.runlog import Run

WORDS = {"error": "Broken", "warning": "Needs attention", "ok": "Steady", "empty": "Nothing seen"}


@dataclass(frozen=True)
class Verdict:
    """How a run went.

    Attributes:
        level: ``error``, ``warning``, ``ok`` or ``empty``.
        word: the level in a word or two.
        sentence: what happened, one sentence.
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
        'Steady over 50 steps: the gradient norm stayed within 1.3 times its median, ...'
    """
    if not len(run):
        return _made("empty", "No optimizer step was recorded, so nothing can be said of this run.")
    if [f.id for f in findings] == [NOTHING]:
        return _made("empty", _sentence(findings[0].title))
    grave = [f for f in findings if f.severity in ("error", "warning")]
    if grave:
        return _made(grave[0].severity, _sentence(grave[0].title))
    return _made("ok", _steady(run))


def _made(level: str, sentence: str) -> Verdict:
    return Verdict(level, WORDS[level], sentence)


def _sentence(title: str) -> str:
    return title if title.endswith((".", "!", "?")) else f"{title}."


def _steady(run: Run) -> str:
    norm = np.asarray(run.steps["norm"])
    usable = norm[np.isfinite(norm) & (norm > 0)]
    count = f"{len(run):,} step" + "s" * (len(run) > 1)
    if not usable.size:
        return f"{count} recorded, none with a gradient norm over 0: there is nothing to judge."
    ratio = ratio_text(float(usable.max() / np.median(usable)))
    peak = run.steps[np.nanargmax(np.where(np.isfinite(norm), norm, -1.0))]
    steady = f"Steady over {count}: the gradient norm stayed within {ratio} its median"
    if peak["action"] == "clip":
        steady = f"Steady over {count}: norms of up to {ratio} the median came, and were clipped"
    return f"{steady}{_loss(run)}."


def _loss(run: Run) -> str:
    """Whether the loss fell: a steady norm says nothing of that."""
    numbers = np.asarray(run.steps["optimizer"])
    trends = [View(run, int(number)).loss_trend for number in np.unique(numbers)]
    if not any(trend.known for trend in trends):
        return "; too few losses were recorded to say whether the training got anywhere"
    if len(trends) > 1:
        return ""
    trend = trends[0]
    span = f"from {figure(trend.start)} to {figure(trend.end)}"
    if trend.signed:
        return f"; the loss went {span}"
    if trend.end > trend.start and not trend.home:
        return f", but the loss rose {span}"
    if trend.stalled:
        return f", but the loss hardly fell: {span}"
    return f", and the loss fell {span}"


def ratio_text(ratio: float) -> str:
    """A factor in words.

    Example:
        >>> ratio_text(3.14159), ratio_text(116_666.0)
        ('3.1 times', '116,666 times')
    """
    return f"{ratio:.2g} times" if ratio < 100 else f"{figure(ratio)} times"
