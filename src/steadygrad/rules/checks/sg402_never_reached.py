"""SG402: a threshold that never acts: above every norm, spikes included."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from steadygrad.robust import median
from steadygrad.rules.advice import hold_norm
from steadygrad.rules.base import Rule, finding
from steadygrad.rules.evidence.clips import calls
from steadygrad.rules.evidence.view import View
from steadygrad.rules.evidence.wording import number, times
from steadygrad.rules.finding import Finding

FAR = 20.0


def check(view: View) -> Iterator[Finding]:
    thresholds = view.threshold[view.usable]
    if not view.enough or not np.isfinite(thresholds).all() or (view.coef[view.usable] < 1).any():
        return
    norms = view.norm[view.usable]
    threshold, peak = median(thresholds), float(norms.max())
    if _by_value(view):
        return  # a bound on elements says nothing of the norm
    places = view.spikes
    if len(places) or threshold > FAR * peak:
        yield _finding(view, threshold, peak, len(places))


def _by_value(view: View) -> bool:
    """Whether the threshold bounds elements."""
    return str(view.info.get("policy", "")).startswith("value") or any(
        call.get("by_value") for call in calls(view)
    )


def _finding(view: View, threshold: float, peak: float, passed: int) -> Finding:
    norms = view.norm[view.usable]
    why = (
        f"{passed} spike{'s' * (passed > 1)} passed under it"
        if passed
        else f"it is {times(threshold / max(peak, 1e-300))} the highest norm"
    )
    at = view.step[view.usable][int(np.argmax(norms))]
    return finding(
        view,
        "SG402",
        "warning" if passed else "info",
        0.9 if passed else 0.85,
        f"The threshold {number(threshold)} is never reached: {why}.",
        evidence=[
            f"0 of {len(norms)} steps are clipped; norms: median {number(median(norms))}, "
            f"highest {number(peak)} (step {at}).",
        ],
        steps=[int(at)],
        tensors=[],
        causes=[
            "the threshold was copied from another model",
            "the loss was rescaled (mean for sum, another batch size) after it was chosen",
        ],
        fixes=hold_norm(view),
        figures={"threshold": threshold, "peak": peak, "spikes": passed},
    )


RULE = Rule("SG402", "a threshold that is never reached", check, supersedes=("SG202",))
