"""What one cell came to: read from its run file, and from how its process ended."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from steadygrad.compare.cells import Cell
from steadygrad.errors import RunFileError
from steadygrad.report.key_figures import clip_rate, ends, level
from steadygrad.report.optimizers import name_of, rows_of_each
from steadygrad.rules.evidence.stability import of_view
from steadygrad.rules.evidence.view import View
from steadygrad.runlog import Run, open_run

POINTS = 200
DIVERGED_FACTOR = 2.0

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Curve:
    """A smoothed loss curve.

    Attributes:
        steps: middle step of each stretch, ``[points]``.
        losses: median loss of each stretch, ``[points]``; NaN where most are not finite.
    """

    steps: Floats
    losses: Floats


@dataclass(frozen=True)
class TrainingResult:
    """One training's result.

    Attributes:
        spec: its policy.
        seed: its seed.
        trouble: empty, or why it counts as diverged or failed.
        steps: optimizer steps recorded.
        final_loss: median loss of the last 5 % of the steps; NaN where there is none.
        clip_rate: share of steps clipped.
        skip_rate: share of steps skipped.
        unstable: share of steps that spike or recover; NaN where too few were recorded to tell.
        cosine: mean between the gradient and what was applied, over the steps not skipped.
        seconds: wall time of the whole process.
        curve: its loss over the steps; None where nothing was recorded.
        optimizer: which of a run's several optimizers it is of; empty where there is but one, or
            where none has stepped.
    """

    spec: str
    seed: int
    trouble: str = ""
    steps: int = 0
    final_loss: float = math.nan
    clip_rate: float = math.nan
    skip_rate: float = math.nan
    unstable: float = math.nan
    cosine: float = math.nan
    seconds: float = math.nan
    curve: Curve | None = None
    optimizer: str = ""


def measure(cell: Cell, ended: dict[str, Any]) -> list[TrainingResult]:
    """Read what a finished cell came to.

    Args:
        cell: the cell.
        ended: its ``exit`` code and ``seconds``.

    Returns:
        One outcome for each optimizer: a critic's loss and its generator's have no mean.
    """
    seconds = float(ended["seconds"])
    crash = _crash(cell) if ended["exit"] else ""
    try:
        run = open_run(cell.run_file)
    except RunFileError:
        trouble = crash or "recorded no optimizer step"
        return [TrainingResult(cell.spec, cell.seed, trouble=trouble, seconds=seconds)]
    of_each = list(rows_of_each(run)) or [0]
    several = len(of_each) > 1
    return [
        _outcome(cell, run, number, crash, seconds, name_of(run, number) if several else "")
        for number in of_each
    ]


def _outcome(
    cell: Cell, run: Run, number: int, crash: str, seconds: float, optimizer: str
) -> TrainingResult:
    rows, view = run.steps[run.steps["optimizer"] == number], View(run, number)
    applied = rows[rows["action"] != "skip"]
    cosines = applied["cosine"][np.isfinite(applied["cosine"])]
    losses = np.asarray(view.loss, dtype=np.float64)
    return TrainingResult(
        spec=cell.spec,
        seed=cell.seed,
        trouble=crash or divergence(losses, np.asarray(rows["norm"], dtype=np.float64)),
        steps=len(rows),
        final_loss=ends(losses)[1] if len(rows) else math.nan,
        clip_rate=clip_rate(rows),
        skip_rate=float((rows["action"] == "skip").mean()) if len(rows) else math.nan,
        unstable=of_view(view).score if len(rows) else math.nan,
        cosine=float(cosines.mean()) if cosines.size else math.nan,
        seconds=seconds,
        curve=curve(losses) if len(rows) else None,
        optimizer=optimizer,
    )


def divergence(losses: Floats, norms: Floats) -> str:
    """Why a training that ran through counts as diverged; empty where it does not.

    Args:
        losses: one a step.
        norms: one a step.
    """
    if not losses.size:
        return "recorded no optimizer step"
    last = max(1, losses.size // 20)
    if not np.isfinite(losses).any():
        return "" if np.isfinite(norms[-last:]).any() else "gradients not finite"
    start, end = ends(losses)
    if math.isnan(end):
        return "loss not finite"
    if not np.isfinite(norms[-last:]).any():
        return "gradients not finite"
    grown = end > DIVERGED_FACTOR * start if start > 0 else False
    return f"loss grew from {start:.3g} to {end:.3g}" if grown else ""


def curve(losses: Floats, points: int = POINTS) -> Curve:
    """Medians of a loss over up to ``points`` stretches of equal length."""
    edges = np.linspace(0, losses.size, min(points, losses.size) + 1).astype(int)
    parts = [losses[a:b] for a, b in itertools.pairwise(edges)]
    medians = [level(part) for part in parts]
    return Curve((edges[:-1] + edges[1:] - 1) / 2, np.array(medians))


def _crash(cell: Cell) -> str:
    """The last line that the script printed, which for an exception names it."""
    try:
        lines = cell.log.read_text(errors="replace").strip().splitlines()
    except OSError:
        lines = []
    return f"failed: {lines[-1][:200]}" if lines else "failed without a word"
