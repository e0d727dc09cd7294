"""The script's own clip calls, as the observer saw them, for the rules on misplacement.

Each call is an event of kind ``script_clip``. A rule speaks only where most calls show the
same fault: a single odd one (a last, incomplete batch) is none.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any

from steadygrad.rules.evidence.view import View
from steadygrad.vocabulary import SCRIPT_CLIP

Call = Mapping[str, Any]
MOST = 0.6
SAME = 1e-5
"""Relative distance of norms of the same gradients."""


def calls(view: View) -> list[Call]:
    """The calls that concern this optimizer, each with its ``step``, oldest first."""
    return [call for call in _all_calls(view) if "policy" not in call]


def before_policy(view: View) -> list[Call]:
    """Calls that clipped what an attached policy was then given, each with its ``step``."""
    return [call for call in _all_calls(view) if "policy" in call]


def _all_calls(view: View) -> list[Call]:
    return [{**e.data, "step": _step(e.step, e.data)} for e in view.events(SCRIPT_CLIP)]


def _step(step: int | None, data: Mapping[str, Any]) -> int:
    return int(step if step is not None else data.get("step", -1))


def share(clip_calls: list[Call], fault: Callable[[Call], bool]) -> float:
    """Share of the calls that show a fault; 0 for no calls.

    Example:
        >>> share([{"n": 1}, {"n": 0}], lambda call: call["n"] == 0)
        0.5
    """
    return sum(map(fault, clip_calls)) / len(clip_calls) if clip_calls else 0.0


def by_step(clip_calls: list[Call]) -> dict[int, list[Call]]:
    """The calls of each optimizer step, in the order made."""
    groups: dict[int, list[Call]] = defaultdict(list)
    for call in clip_calls:
        groups[int(call["step"])].append(call)
    return dict(groups)


def figure(call: Call, key: str, default: float = math.nan) -> float:
    """A number of a call; JSON keeps inf and NaN as text.

    Example:
        >>> figure({"max_norm": "inf"}, "max_norm")
        inf
    """
    value = call.get(key)
    return default if value is None else float(value)


def unfilled(call: Call) -> bool:
    """Whether no backward has run since the step before: there is nothing new to clip."""
    return bool(call.get("after_step")) or figure(call, "backward_since_step", 1) == 0


def used_up(view: View, clip_calls: list[Call]) -> set[int]:
    """Ids of those on gradients that the step before has used, though others had a backward since.

    Their norm is the one that this step has left, and the next step is given other gradients.
    """
    rows = {int(step): row for row, step in enumerate(view.step)}
    old: set[int] = set()
    for step, group in by_step(clip_calls).items():
        row, before = rows.get(step, 0), rows.get(step - 1)
        if before is None or math.isfinite(view.threshold[row]):
            continue
        left = float(view.norm[before] * view.coef[before])
        for call in group:
            if not math.isclose(figure(call, "norm"), left, rel_tol=SAME):
                break
            old.add(id(call))
            left *= figure(call, "coef", 1.0)
    return old


def gradientless(call: Call) -> bool:
    """Whether the call was given no parameters at all: gradients, or a used-up generator."""
    return bool(call.get("on_gradients")) or call.get("passed") == 0


def before_first_backward(view: View, clip_calls: list[Call]) -> bool:
    """Whether a call stood before the very first backward: above it in the loop, not below."""
    first = min((int(call["step"]) for call in clip_calls), default=-1)
    return first == int(view.step[0]) and any(
        unfilled(call) or figure(call, "params", 1) == 0
        for call in clip_calls
        if int(call["step"]) == first
    )


def at(clip_calls: list[Call], fault: Callable[[Call], bool]) -> list[int]:
    """The first steps whose calls show a fault, at most 50."""
    return sorted({int(call["step"]) for call in clip_calls if fault(call)})[:50]
