"""SG202: isolated spikes of the gradient norm."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import numpy as np

from steadygrad.robust import ENOUGH, median, spread
from steadygrad.rules.advice import clip_code, hold_norm
from steadygrad.rules.base import Rule, finding
from steadygrad.rules.evidence.loop import normalises
from steadygrad.rules.evidence.steps import Array
from steadygrad.rules.evidence.view import View
from steadygrad.rules.evidence.wording import number, percent, times
from steadygrad.rules.finding import Finding

_CAUSES = (
    "single batches far from the rest: an outlier, a wrong label, an unscaled feature",
    "a steep wall of the loss surface, as recurrent networks have",
    "an optimizer state that is stale after a change of data or learning rate",
)
_TARGETS = (
    "targets that change at these steps: a target network is brought up to date, a task begins"
)

AROUND = 16
"""Steps before and after a spike over which the loss is compared."""
LASTS, HIGH = 2, 4.0
"""Steps for which what a change of targets brings lasts at least, and times the median by then."""
NEXT_TO = 0.05
"""Share of the loss's jump at the spike that may be left of it afterwards."""
MILD = 20.0
"""Times the median up to which one spike alone may be an ordinary batch."""


def check(view: View) -> Iterator[Finding]:
    norms = view.norm[view.usable]
    places = view.spikes
    if not len(places) or len(norms) < 16:
        return
    index = np.flatnonzero(view.usable)[places]
    yield _finding(view, index, norms, _harmless_because(view, index, places))


def _harmless_because(view: View, index: Array, places: Array) -> str:
    """Why these spikes did no harm; empty where they may have."""
    if (view.coef[index] < 0.5).all():
        return "each was clipped"
    norms = view.norm[view.usable]
    first = np.setdiff1d(np.arange(max(1, len(norms) // 20)), places)
    if len(first) and norms[places].max() <= norms[first].max():
        return "the first steps were as large, and the run went on from them"
    mild = norms[places].max() < MILD * median(norms)
    if len(index) == 1 and mild and _unnoticed(view, int(index[0])):
        return "the loss shows nothing of it"
    interval = _interval(view, index)
    if interval:
        return f"they come every {interval} steps, where targets change, and each was learned away"
    if normalises(view) and all(_back_at_once(view, int(place)) for place in index):
        return "the optimizer's steps do not grow with them, and the loss was back at once"
    return ""


def _interval(view: View, index: Array) -> int:
    """Steps from spike to spike, where they are those of targets that change; 0 where not.

    As where a target network is brought up to date: from there on norms and losses are high for
    some steps, and come down before the next. An outlier that comes in every epoch is over at once.
    """
    begins = index[np.diff(index, prepend=-LASTS - 1) > LASTS]
    gaps = np.diff(begins)
    if len(begins) < 3 or gaps.min() < 2 * AROUND or (gaps % gaps.min()).any():
        return 0
    usual = median(view.norm[view.usable])
    for place in begins:
        after = view.norm[place + 1 : place + 1 + LASTS]
        before = view.loss[max(0, place - AROUND) : place]
        jumped = view.loss[place : place + LASTS].min() > median(before) + spread(before)
        if len(after) < LASTS or not (after > HIGH * usual).all() or not jumped:
            return 0
    before_each = [median(view.loss[place - AROUND : place]) for place in begins]
    came_back = all(
        b <= a + spread(view.loss[begins[0] - AROUND : begins[0]]) for a, b in pairwise(before_each)
    )
    return int(gaps.min()) if came_back else 0


def _unnoticed(view: View, place: int) -> bool:
    """Whether the loss stood among those before it, at the spike and in the steps after."""
    before = view.loss[max(0, place - AROUND) : place]
    return _back_at_once(view, place) and bool(view.loss[place] <= before.max())


def _back_at_once(view: View, place: int) -> bool:
    """Whether the loss of the steps after a spike is next to what it was before it."""
    before, after = (
        view.loss[max(0, place - AROUND) : place],
        view.loss[place + 1 : place + 1 + AROUND],
    )
    if len(after) < ENOUGH or not np.isfinite([*before, view.loss[place], *after]).all():
        return False
    usual, shock = median(before), abs(view.loss[place] - median(before))
    left = max(spread(before), min(NEXT_TO * shock, abs(usual) / 2))
    return bool(median(after) <= usual + left)


def _ruined(view: View, index: Array) -> bool:
    """Whether the loss went up with the first spike and stayed at twice what it was before."""
    first = int(index[0])
    before, after = view.loss[max(0, first - AROUND) : first], view.loss[first + 1 :]
    if len(after) < AROUND or not np.isfinite(median(before)):
        return False
    later = np.quantile(after[np.isfinite(after)], 0.25) if np.isfinite(after).any() else np.inf
    return bool(median(before) > 0 and later > 2 * median(before))


def _finding(view: View, index: Array, norms: Array, harmless: str) -> Finding:
    usual = median(norms)
    factor = float(view.norm[index].max()) / max(usual, 1e-300)
    listed = ", ".join(f"{view.step[i]} ({number(view.norm[i])})" for i in index[:8])
    many = len(index) / len(norms)
    end = harmless or (
        "the loss never came back" if _ruined(view, index) else "nothing held them back"
    )
    names = _tensors(view, int(index[np.argmax(view.norm[index])]))
    return finding(
        view,
        "SG202",
        "info" if harmless else "error" if _ruined(view, index) else "warning",
        min(0.95, 0.7 + 0.05 * float(np.log10(factor)) * 2),
        f"{len(index)} gradient spike{'s' * (len(index) > 1)} up to {times(factor)} the "
        f"median; {end}.",
        evidence=[
            f"Steps (norm): {listed}; the median norm is {number(usual)}.",
            f"{percent(many)} of the steps are spikes.",
            *([f"At the largest, {names[0]} carries most of the norm."] if names else []),
        ],
        steps=view.step[index],
        tensors=names,
        causes=(_TARGETS, *_CAUSES) if _interval(view, index) else _CAUSES,
        fixes=hold_norm(view, clip_code(view, "zclip")),
        figures={"factor": factor, "share": many},
    )


def _tensors(view: View, index: int) -> list[str]:
    place = np.flatnonzero(view.rows_read == index)
    if not len(place) or not len(view.order):
        return []
    row = np.nan_to_num(view.norms[place[0]])
    return [view.tensors[i].name for i in np.argsort(row)[::-1][:3]]


RULE = Rule("SG202", "isolated gradient spikes", check)
