"""Several runs side by side: the table, and one sentence that claims no more than was seen."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from steadygrad.report.key_figures import clip_rate, ends, ends_error, unstable
from steadygrad.report.numbers import duration, figure
from steadygrad.rules.evidence.stability import stability
from steadygrad.rules.evidence.view import kept_steps
from steadygrad.text import percent

if TYPE_CHECKING:
    from steadygrad.runlog import Run


RARE = ("Skipped", "NaN or inf")
"""Columns left out where every run has 0."""


def comparison(runs: Sequence[Run], told: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Lay runs side by side.

    Args:
        runs: two or more.
        told: what `summarise` said of each.

    Returns:
        ``sentence``, ``columns`` (headings) and ``rows`` (``name``, ``level``, ``cells``).
    """
    extras = _extras(runs)
    finals = [ends(np.asarray(kept_steps(run)["loss"]))[1] for run in runs]
    cells = [
        _cells(run, final, extras, t["recommendation"]["threshold"])
        for run, t, final in zip(runs, told, finals, strict=True)
    ]
    shown = [c for c in cells[0] if c not in RARE or any(row[c] != "0" for row in cells)]
    rows = [
        {"name": t["name"], "level": t["verdict"]["level"], "cells": [row[c] for c in shown]}
        for t, row in zip(told, cells, strict=True)
    ]
    return {"sentence": _sentence(runs, told, finals), "columns": shown, "rows": rows}


def _extras(runs: Sequence[Run]) -> list[str]:
    """Names of the results that the runs themselves reported, such as an accuracy."""
    names: dict[str, None] = {}
    for run in runs:
        results = run.info.get("results")
        if isinstance(results, dict):
            names.update(dict.fromkeys(map(str, results)))
    return list(names)


def _cells(
    run: Run, final: float, extras: Sequence[str], recommended: float | None
) -> dict[str, str]:
    rows, info = run.steps, run.info
    norm, kept = np.asarray(rows["norm"]), np.asarray(kept_steps(run)["norm"])
    usable = kept[np.isfinite(kept) & (kept > 0)]
    results = info.get("results")
    reported = results if isinstance(results, dict) else {}
    seconds = info.get("wall_seconds")
    return {
        "Policy": str(info.get("policy") or "–"),
        "Final loss": figure(final),
        **{name: str(reported.get(name, "–")) for name in extras},
        "Median norm": figure(float(np.median(usable)) if usable.size else None),
        "Peak norm": figure(float(usable.max()) if usable.size else None),
        "Recommended": figure(recommended),
        "Clipped": percent(clip_rate(rows)),
        "Direction kept": _direction(rows),
        "Skipped": f"{int((rows['action'] == 'skip').sum()):,}",
        "NaN or inf": f"{int((~np.isfinite(norm)).sum()):,}",
        "Unstable": unstable(stability(run)),
        "Time": duration(float(seconds)) if isinstance(seconds, int | float) else "–",
    }


def _direction(rows: Any) -> str:
    """Mean cosine between the gradient and what was applied, over the clipped steps."""
    known = rows["cosine"][(rows["action"] == "clip") & np.isfinite(rows["cosine"])]
    if not known.size:
        return "1" if not (rows["action"] == "clip").any() else "–"
    return f"{float(known.mean()):.2f}" if known.mean() < 0.9995 else "1"


def _sentence(runs: Sequence[Run], told: Sequence[dict[str, Any]], finals: Sequence[float]) -> str:
    """Which runs end lowest; runs closer than the noise of their last steps are called alike."""
    known = sorted((f, i) for i, f in enumerate(finals) if math.isfinite(f))
    parts = []
    if known:
        best, first = known[0]
        listed = [f"{told[first]['name']} {figure(best)}"]
        for final, i in known[1:]:
            alike = final - best <= 2 * math.hypot(_error(runs[first]), _error(runs[i]))
            listed.append(f"{'alike' if alike else 'then'} {told[i]['name']} {figure(final)}")
        parts.append("Lowest final loss: " + ", ".join(listed))
    broken = [t["name"] for t in told if t["verdict"]["level"] == "error"]
    if broken:
        parts.append(f"Broken: {_listed(broken)}")
    return ". ".join(parts) + "." if parts else "None of the runs recorded a loss."


def _error(run: Run) -> float:
    return ends_error(np.asarray(kept_steps(run)["loss"]))


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
