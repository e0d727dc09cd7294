"""The rows of a comparison as words, for the terminal and the page."""

from __future__ import annotations

import math

from steadygrad.compare.table import Comparison, Row
from steadygrad.report.numbers import duration, figure
from steadygrad.text import percent


def cells(row: Row) -> list[str]:
    """One row as text, a cell a figure, in the order of the page's headings."""
    cosine, seconds = row.mean("cosine"), row.mean("seconds")
    rates = [row.mean(name) for name in ("clip_rate", "unstable", "skip_rate")]
    return [
        row.spec,
        figure(row.final_loss),
        figure(row.spread),
        row.standing or "–",
        f"{row.diverged} of {len(row.outcomes)}" if row.diverged else "0",
        *(percent(rate) if math.isfinite(rate) else "–" for rate in rates),
        f"{cosine:.3f}" if math.isfinite(cosine) else "–",
        duration(seconds) if math.isfinite(seconds) else "–",
    ]


def troubles(comparison: Comparison, most: int = 6) -> list[str]:
    """Why trainings diverged or failed, a line a training."""
    lines = [
        f"  {o.spec}, seed {o.seed}: {o.trouble}"
        for r in comparison.rows
        for o in r.outcomes
        if o.trouble
    ]
    more = [f"  and {len(lines) - most} more"] if len(lines) > most else []
    return lines[:most] + more
