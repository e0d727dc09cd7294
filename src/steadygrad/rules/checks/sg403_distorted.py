"""SG403: value clipping that turns the gradient's direction."""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np

from steadygrad.robust import median
from steadygrad.rules.advice import clip_code, hold_norm
from steadygrad.rules.base import Rule, finding
from steadygrad.rules.evidence.clips import calls, figure
from steadygrad.rules.evidence.steps import Array
from steadygrad.rules.evidence.view import View
from steadygrad.rules.evidence.wording import number, percent
from steadygrad.rules.finding import Finding

TURNED = 0.9
OFTEN = 0.2


def check(view: View) -> Iterator[Finding]:
    told_steps = view.usable & np.isfinite(view.cosine)
    if int(told_steps.sum()) < 4 or not _clamped(view):
        return
    turned = told_steps & (view.cosine < TURNED)
    rate = float(turned.sum() / told_steps.sum())
    if rate >= OFTEN:
        yield _finding(view, turned, rate)


def _clamped(view: View) -> bool:
    """Whether elements were cut: two parts clipped apart by norm turn the direction as well."""
    by_policy = "value" in re.split(r"[^a-z-]+", str(view.info.get("policy", "")))
    acted = (figure(call, "coef", 1.0) < 1 for call in calls(view) if call.get("by_value"))
    return by_policy or any(acted)


def _finding(view: View, turned: Array, rate: float) -> Finding:
    cosines = view.cosine[turned]
    lowest = float(cosines.min())
    degrees = float(np.degrees(np.arccos(np.clip(median(cosines), -1, 1))))
    limit = median(view.threshold[turned])
    return finding(
        view,
        "SG403",
        "warning",
        min(0.95, 0.75 + 0.2 * rate),
        f"Value clipping turns the gradient: by {degrees:.0f} degrees in the median of the "
        f"{percent(rate)} of steps where it acts hard.",
        evidence=[
            f"Cosine between the gradient and what was applied: median {number(median(cosines))}, "
            f"lowest {number(lowest)} (step {view.step[turned][int(np.argmin(cosines))]}).",
            f"Every element over {number(limit)} is cut to it, so large and small directions "
            "become alike.",
        ],
        steps=view.step[turned][:50],
        tensors=[],
        causes=[
            "clip by value where clip by norm was meant",
            "a value so low that it cuts most of the elements that matter",
        ],
        fixes=hold_norm(view, clip_code(view, f"value:{10 * limit:g}"), note="keeps the direction"),
        figures={"share": rate, "median_cosine": median(cosines)},
    )


RULE = Rule("SG403", "a direction distorted by value clipping", check, supersedes=("SG401",))
