"""Down-sampling that hides nothing.

A chart of a thousand pixels cannot show 100,000 steps, and taking every
hundredth would drop the spike that the reader came for. Each bucket of steps
keeps its smallest and largest finite value and its first non-finite one, at
their true steps; everything off the scale (NaN, inf, a norm of 0) is listed too.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from steadygrad.recovery.episodes import episodes
from steadygrad.recovery.events import RecoveryEvent
from steadygrad.recovery.undone import stretches
from steadygrad.report.model import (
    FigureCurve,
    Lane,
    Mark,
    NormCurve,
    Recovered,
    Series,
    StretchData,
    Trend,
)
from steadygrad.report.numbers import short

Floats = NDArray[np.float64]

BUCKETS = 600
TREND_POINTS = 160
LANE_SLOTS = 240
MOST_EPISODES = 300


def keep(values: Floats, buckets: int = BUCKETS) -> NDArray[np.int64]:
    """Places to draw of a series: extremes and the first non-finite value of each bucket.

    Args:
        values: shape ``[steps]``; NaN and inf allowed.
        buckets: number of buckets; a series of up to four times as many is kept whole.

    Returns:
        Ascending indices, at most three a bucket, the first and the last among them.

    Example:
        >>> v = np.zeros(100_000); v[41_234] = 9.0; v[7] = np.nan
        >>> kept = keep(v, 10)
        >>> len(kept) <= 32, 41_234 in kept, 7 in kept
        (True, True, True)
    """
    n = len(values)
    if n <= 4 * buckets:
        return np.arange(n)
    width = -(-n // buckets)
    padded = np.full(width * buckets, np.nan)
    padded[:n] = values
    table = padded.reshape(buckets, width)
    finite = np.isfinite(table)
    starts = np.arange(buckets) * width
    lowest = np.where(finite, table, np.inf).argmin(axis=1) + starts
    highest = np.where(finite, table, -np.inf).argmax(axis=1) + starts
    broken = (~finite).argmax(axis=1) + starts
    broken = broken[~finite.all(axis=1)]
    chosen = np.unique(np.concatenate([[0, n - 1], lowest, highest, broken]))
    return chosen[chosen < n]


def trend(steps: NDArray[np.int64], values: Floats, points: int = TREND_POINTS) -> Trend:
    """The level of a series: the median of each of ``points`` stretches.

    Args:
        steps: step numbers, shape ``[steps]``.
        values: shape ``[steps]``.
        points: the most stretches; each holds at least five steps.

    Returns:
        ``step`` and ``value`` lists, empty under 40 steps.
    """
    n = len(values)
    if n < 40:
        return {"step": [], "value": []}
    edges = np.linspace(0, n, min(points, n // 5) + 1).astype(int)
    at, level = [], []
    for a, b in itertools.pairwise(edges.tolist()):
        finite = values[a:b][np.isfinite(values[a:b])]
        if finite.size:
            at.append(int(steps[(a + b - 1) // 2]))
            level.append(float(np.median(finite)))
    return {"step": at, "value": short(np.array(level))}


def off_scale(steps: NDArray[np.int64], values: Floats, *, log: bool) -> list[Mark]:
    """What a line cannot show: NaN, inf and, on a log axis, values of 0; joined, never dropped.

    Args:
        steps: step numbers, shape ``[steps]``.
        values: shape ``[steps]``.
        log: whether the axis is logarithmic.

    Returns:
        One mark a stretch and kind: ``kind``, ``first`` and ``last`` step, ``count``; marks nearer
        than a pixel or so are one.
    """
    kinds = {"nan": np.isnan(values), "inf": np.isinf(values)}
    if log:
        kinds["zero"] = values == 0
    reach = max(1, len(values) // LANE_SLOTS)
    marks: list[Mark] = []
    for kind, where in kinds.items():
        places = np.flatnonzero(where)
        for inside in np.split(places, np.flatnonzero(np.diff(places) > reach) + 1):
            if inside.size:
                first, last = int(steps[inside[0]]), int(steps[inside[-1]])
                marks.append({"kind": kind, "first": first, "last": last, "count": inside.size})
    return marks


def lanes(rows: Any) -> list[Lane]:
    """Where steps were clipped or skipped: one entry a stretch of steps that holds any.

    Args:
        rows: the optimizer's rows of `run.steps`.

    Returns:
        ``first``, ``last``, ``steps``, ``clipped``, ``skipped`` of each stretch.
    """
    n = len(rows)
    edges = np.linspace(0, n, min(LANE_SLOTS, n) + 1).astype(int)
    busy: list[Lane] = []
    for a, b in itertools.pairwise(edges.tolist()):
        clipped = int((rows["action"][a:b] == "clip").sum())
        skipped = int((rows["action"][a:b] == "skip").sum())
        if clipped or skipped:
            first, last = int(rows["step"][a]), int(rows["step"][b - 1])
            busy.append(
                {
                    "first": first,
                    "last": last,
                    "steps": b - a,
                    "clipped": clipped,
                    "skipped": skipped,
                }
            )
    return busy


def recovered(acts: Sequence[RecoveryEvent]) -> Recovered:
    """What recovery did, ready to draw.

    Args:
        acts: what it did with one optimizer.

    Returns:
        ``undone``, the stretches of steps that rollbacks took back (``first`` and ``last``), and
        ``acts`` (``first``, ``last``, ``act`` and ``text``), of which the last are kept.

    Example:
        >>> recovered([RecoveryEvent(9, "rollback", "loss spike", 5)])["undone"]
        [{'first': 5, 'last': 9}]
    """
    undone: list[StretchData] = [
        {"first": stretch.first, "last": stretch.last} for stretch in stretches(acts)
    ]
    return {
        "undone": undone[-MOST_EPISODES:],
        "acts": [
            {"first": each.first, "last": each.last, "act": each.act, "text": str(each)}
            for each in episodes(acts)[-MOST_EPISODES:]
        ],
    }


def series(rows: Any, acts: Sequence[RecoveryEvent] = ()) -> Series:
    """One optimizer's loss and norm, ready to draw.

    Args:
        rows: the optimizer's rows of `run.steps`.
        acts: what recovery did with it.

    Returns:
        ``loss``, ``norm``, ``cosine`` (each with ``step``, ``value``, ``trend``, ``off_scale``;
        cosine is None where no direction was changed), ``lanes`` and ``recovery``.
    """
    steps = np.asarray(rows["step"])
    loss, norm = np.asarray(rows["loss"]), np.asarray(rows["norm"])
    recorded = loss if np.isfinite(loss).any() or np.isinf(loss).any() else loss[:0]
    drawn = _line(steps[: len(recorded)], recorded, log=False)
    curve: NormCurve = {
        **_line(steps, norm, log=True),
        "threshold": short(np.asarray(rows["threshold"])[keep(norm)]),
        "threshold_of_norm": _threshold_is_of_norm(rows),
    }
    cosine = np.asarray(rows["cosine"])
    turned = _line(steps, cosine, log=False) if (cosine < 0.9995).any() else None
    return {
        "loss": drawn,
        "norm": curve,
        "cosine": turned,
        "lanes": lanes(rows),
        "recovery": recovered(acts),
    }


def _threshold_is_of_norm(rows: Any) -> bool:
    """Whether the threshold can be drawn against the total norm.

    A `clip_value` or a per-tensor threshold cannot; there, clipped steps do not come
    out at the threshold.
    """
    clipped = rows[rows["action"] == "clip"]
    if not len(clipped):
        return bool(np.isfinite(rows["threshold"]).any())
    came_out = clipped["norm"] * clipped["coef"]
    return bool(
        (np.abs(came_out - clipped["threshold"]) <= 0.01 * clipped["threshold"]).mean() > 0.9
    )


def _line(steps: NDArray[np.int64], values: Floats, *, log: bool) -> FigureCurve:
    thinned = keep(values)
    shown = np.where(values > 0, values, np.nan) if log else values
    return {
        "step": steps[thinned].tolist(),
        "value": short(shown[thinned]),
        "trend": trend(steps, shown),
        "off_scale": off_scale(steps, values, log=log),
    }
