"""Several runs side by side: the table, and one sentence that claims no more than was seen."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from steadygrad.report.headline import BROKEN, FAULT
from steadygrad.report.key_figures import clip_rate, ends, ends_error, unstable
from steadygrad.report.model import ComparedRow, RunData, RunsCompared
from steadygrad.report.numbers import duration, figure
from steadygrad.report.optimizers import name_of, rows_of_each
from steadygrad.rules.evidence.stability import of_view
from steadygrad.rules.evidence.view import View
from steadygrad.text import listed, percent

if TYPE_CHECKING:
    from steadygrad.runlog import Run


RARE = ("Skipped", "NaN or inf")
"""Columns left out where every run has 0."""


class OptimizerEntry(NamedTuple):
    """One optimizer of one run.

    Attributes:
        run: the run.
        name: what to call it.
        level: the run's verdict.
        optimizer: what to call the optimizer; empty where every run has but one.
        rows: its steps.
        view: those of them that no rollback took back.
        threshold: recommended for it, or None.
    """

    run: Run
    name: str
    level: str
    optimizer: str
    rows: Any
    view: View
    threshold: float | None

    @property
    def final(self) -> float:
        """Its final loss; NaN where there is none."""
        return ends(self.view.loss)[1]

    @property
    def error(self) -> float:
        """The standard error of that."""
        return ends_error(self.view.loss)


def comparison(runs: Sequence[Run], summaries: Sequence[RunData]) -> RunsCompared:
    """Lay runs side by side, each optimizer of them by itself.

    Args:
        runs: two or more.
        summaries: what `summarise` said of each.

    Returns:
        ``sentence``, ``columns`` (headings) and ``rows`` (``name``, ``level``, ``cells``).
    """
    extras = _extras(runs)
    entries = _entries(runs, summaries)
    cells = [_cells(entry, extras) for entry in entries]
    shown = [c for c in cells[0] if c not in RARE or any(row[c] != "0" for row in cells)]
    rows: list[ComparedRow] = [
        {
            "name": f"{entry.name}, {entry.optimizer}" if entry.optimizer else entry.name,
            "level": entry.level,
            "cells": [row[c] for c in shown],
        }
        for entry, row in zip(entries, cells, strict=True)
    ]
    return {"sentence": _sentence(entries, summaries), "columns": shown, "rows": rows}


def _entries(runs: Sequence[Run], summaries: Sequence[RunData]) -> list[OptimizerEntry]:
    of_each = [rows_of_each(run) or {0: run.steps} for run in runs]
    single = all(len(rows) == 1 for rows in of_each)
    entries = []
    for run, said, parts in zip(runs, summaries, of_each, strict=True):
        thresholds = {
            picture["optimizer"]: picture["threshold"]
            for picture in said["thresholds"]
            if "refused" not in picture
        }
        for number, rows in parts.items():
            optimizer = "" if single else name_of(run, number)
            level, threshold = said["verdict"]["level"], thresholds.get(number)
            view = View(run, number)
            entries.append(
                OptimizerEntry(run, said["name"], level, optimizer, rows, view, threshold)
            )
    return entries


def _extras(runs: Sequence[Run]) -> list[str]:
    """Names of the results that the runs themselves reported, such as an accuracy."""
    names: dict[str, None] = {}
    for run in runs:
        results = run.info.get("results")
        if isinstance(results, dict):
            names.update(dict.fromkeys(map(str, results)))
    return list(names)


def _cells(entry: OptimizerEntry, extras: Sequence[str]) -> dict[str, str]:
    rows, info = entry.rows, entry.run.info
    norm, norms = np.asarray(rows["norm"]), entry.view.norm
    usable = norms[np.isfinite(norms) & (norms > 0)]
    results = info.get("results")
    reported = results if isinstance(results, dict) else {}
    seconds = info.get("wall_seconds")
    return {
        "Policy": str(info.get("policy") or "–"),
        "Final loss": figure(entry.final),
        **{name: str(reported.get(name, "–")) for name in extras},
        "Median norm": figure(float(np.median(usable)) if usable.size else None),
        "Peak norm": figure(float(usable.max()) if usable.size else None),
        "Recommended": figure(entry.threshold),
        "Clipped": percent(clip_rate(rows)),
        "Direction kept": _direction(rows),
        "Skipped": f"{int((rows['action'] == 'skip').sum()):,}",
        "NaN or inf": f"{int((~np.isfinite(norm)).sum()):,}",
        "Unstable": unstable(of_view(entry.view)),
        "Time": duration(float(seconds)) if isinstance(seconds, int | float) else "–",
    }


def _direction(rows: Any) -> str:
    """Mean cosine between the gradient and what was applied, over the clipped steps."""
    cosines = rows["cosine"][(rows["action"] == "clip") & np.isfinite(rows["cosine"])]
    if not cosines.size:
        return "1" if not (rows["action"] == "clip").any() else "–"
    return f"{float(cosines.mean()):.2f}" if cosines.mean() < 0.9995 else "1"


def _sentence(entries: Sequence[OptimizerEntry], summaries: Sequence[RunData]) -> str:
    """Which runs end lowest, for each optimizer by itself."""
    parts = []
    for optimizer in dict.fromkeys(entry.optimizer for entry in entries):
        alike = [entry for entry in entries if entry.optimizer == optimizer]
        order = _order(alike) if len(alike) > 1 or not optimizer else ""
        parts += [f"{optimizer}: {order}" if optimizer else order] if order else []
    for word, lead in ((BROKEN, "Broken:"), (FAULT, "Faults found in")):
        names = [t["name"] for t in summaries if t["verdict"]["word"] == word]
        parts += [f"{lead} {listed(names)}"] if names else []
    return ". ".join(parts) + "." if parts else "No two of the runs can be compared by a loss."


def _order(entries: Sequence[OptimizerEntry]) -> str:
    """The lowest final loss first; runs closer than the noise of their last steps are alike."""
    finite = sorted((e for e in entries if math.isfinite(e.final)), key=lambda e: e.final)
    if not finite:
        return ""
    best = finite[0]
    shown = [f"{best.name} {figure(best.final)}"]
    for entry in finite[1:]:
        alike = entry.final - best.final <= 2 * math.hypot(best.error, entry.error)
        ending = f"{entry.name} {figure(entry.final)}"
        shown.append(f"{ending} (no clear difference)" if alike else f"then {ending}")
    return "Lowest final loss: " + ", ".join(shown)
