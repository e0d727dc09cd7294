"""The handful of figures that stand under the verdict, and the final loss that runs compare by."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from steadygrad.report.model import KeyFigure
from steadygrad.report.numbers import duration, figure
from steadygrad.report.optimizers import rows_of_each
from steadygrad.robust import spread
from steadygrad.rules.evidence.stability import Stability, of_view
from steadygrad.rules.evidence.view import View
from steadygrad.text import percent

if TYPE_CHECKING:
    from steadygrad.runlog import Run

LABELS = ("Steps", "Loss", "Median norm", "Clipped", "NaN or inf", "Unstable steps")
MOST_OPTIMIZERS = 4


def ends(losses: NDArray[np.float64]) -> tuple[float, float]:
    """Median loss of the first and of the last 5 % of the steps.

    NaN where none was recorded; the end is NaN too where over half of its steps are not
    finite, since a run that broke has no final loss.

    Args:
        losses: one a step, shape ``[steps]``.

    Returns:
        Start and end.

    Example:
        >>> ends(np.linspace(2.0, 1.0, 101))
        (1.98, 1.02)
    """
    width = max(1, len(losses) // 20)
    return level(losses[:width]), level(losses[len(losses) - width :])


def level(losses: NDArray[np.float64]) -> float:
    """Median of a stretch of losses; NaN where half of them or more are not finite."""
    finite = losses[np.isfinite(losses)]
    return float(np.median(finite)) if 2 * finite.size > losses.size else math.nan


def ends_error(losses: NDArray[np.float64]) -> float:
    """Standard error of the end that `ends` gives, from the robust spread of its steps."""
    last = losses[len(losses) - max(1, len(losses) // 20) :]
    finite = last[np.isfinite(last)]
    if not finite.size:
        return 0.0
    # of a median of independent normal values
    return 1.2533 * spread(finite) / math.sqrt(finite.size)


def clip_rate(rows: Any) -> float:
    """Share of steps whose gradients were clipped."""
    return float((rows["action"] == "clip").mean()) if len(rows) else 0.0


def overhead(info: dict[str, object]) -> tuple[float, float]:
    """Seconds that recording took, and their share of the run; NaN where unknown."""
    spent, whole = info.get("overhead_seconds"), info.get("wall_seconds")
    spent = float(spent) if isinstance(spent, int | float) else math.nan
    whole = float(whole) if isinstance(whole, int | float) and whole > 0 else math.nan
    return spent, spent / whole


def key_figures(run: Run) -> list[KeyFigure]:
    """Label, value and note of each figure, as text.

    Args:
        run: the run.

    Returns:
        Steps, loss, norm, clipped, broken and unstable steps; with several optimizers each of
        these for every one of them, side by side. Loss and norm are of the steps that no
        rollback took back.

    Example:
        >>> from steadygrad.runlog import Run
        >>> steps = {"norm": np.array([1.0, 9.0, 9.0]), "optimizer": np.array([0, 1, 1])}
        >>> [(f["label"], f["value"]) for f in key_figures(Run.from_arrays(steps=steps))][:2]
        [('Steps of optimizers 0 | 1', '1 | 2'), ('Median norm of optimizers 0 | 1', '1 | 9')]
    """
    of_each = rows_of_each(run)
    if len(of_each) < 2:
        return [_item(*shown) for shown in _figures(run, run.steps, _took(run))]
    first = dict(list(of_each.items())[:MOST_OPTIMIZERS])
    left = len(of_each) - len(first)
    many = f"{len(of_each)} optimizers"
    took = ", ".join(filter(None, [many, f"{left} not shown" if left else "", _took(run)]))
    columns = [
        {label: (value, note) for label, value, note in _figures(run, rows, took)}
        for rows in first.values()
    ]
    labels = [label for label in LABELS if any(label in column for column in columns)]
    which = f" of optimizers {' | '.join(map(str, first))}"
    return [_item(label + which, *_side_by_side(columns, label)) for label in labels]


def _item(label: str, value: str, note: str) -> KeyFigure:
    return {"label": label, "value": value, "note": note}


def _side_by_side(columns: list[dict[str, tuple[str, str]]], label: str) -> tuple[str, str]:
    cells = [column.get(label, ("–", "–")) for column in columns]
    notes = list(dict.fromkeys(note for _, note in cells))
    shared = len(notes) == 1
    return " | ".join(v for v, _ in cells), notes[0] if shared else " | ".join(n for _, n in cells)


def _figures(run: Run, rows: Any, took: str) -> list[tuple[str, str, str]]:
    shown = [("Steps", f"{len(rows):,}", took)]
    if not len(rows):
        return shown
    view = View(run, int(rows["optimizer"][0]))
    own = run.steps[view.rows]
    shown += [*_loss(own), *_norm(own), _clipped(run, rows), _broken(rows)]
    return [*shown, _unstable(of_view(view))]


def _took(run: Run) -> str:
    seconds = run.info.get("wall_seconds")
    took = duration(float(seconds)) if isinstance(seconds, int | float) else ""
    return f"in {took}" if took else ""


def _loss(rows: Any) -> list[tuple[str, str, str]]:
    start, end = ends(np.asarray(rows["loss"]))
    if math.isnan(start) and math.isnan(end):
        return []
    return [("Loss", figure(end), f"from {figure(start)} at the start")]


def _norm(rows: Any) -> list[tuple[str, str, str]]:
    norm = np.asarray(rows["norm"])
    usable = norm[np.isfinite(norm) & (norm > 0)]
    if not usable.size:
        return []
    return [
        ("Median norm", figure(float(np.median(usable))), f"peak {figure(float(usable.max()))}")
    ]


def _clipped(run: Run, rows: object) -> tuple[str, str, str]:
    policy = run.info.get("policy")
    note = f"policy {policy}" if policy else "of the steps"
    return "Clipped", percent(clip_rate(rows)), note


def _broken(rows: Any) -> tuple[str, str, str]:
    bad = int((~np.isfinite(rows["norm"]) | (rows["nonfinite"] > 0)).sum())
    skipped = int((rows["action"] == "skip").sum())
    steps = "step" if bad == 1 else "steps"
    return "NaN or inf", f"{bad:,}", f"{steps}; {skipped:,} skipped" if skipped else steps


def _unstable(scored: Stability) -> tuple[str, str, str]:
    recovered = f", {scored.recoveries:,} undone" if scored.recoveries else ""
    spikes = "1 spike" if scored.spikes == 1 else f"{scored.spikes:,} spikes"
    return "Unstable steps", unstable(scored), f"{spikes}{recovered}"


def unstable(scored: Stability) -> str:
    """The share of steps that spike or recover, as text; a dash for a run too short to tell."""
    return "–" if math.isnan(scored.score) else percent(scored.score)
