"""Where the script's clip calls stand, written down for the rules.

Every call of the first steps becomes an event, later ones are sampled, and calls that
stand otherwise than all before always are: a call a step would otherwise outweigh
the steps in the run file. The counts in the run's ``clip_calls`` are exact.
"""

from __future__ import annotations

import math
from typing import Any

from steadygrad.launch.torch_script.clips import ClipCall

ALL_BEFORE = 64
EVERY = 16


class CallBook:
    """Counts clip calls by where they stand."""

    def __init__(self) -> None:
        self._counts: dict[tuple[Any, ...], dict[str, Any]] = {}

    def enter(
        self, call: ClipCall, step: int, of_params: int, optimizer: int
    ) -> dict[str, Any] | None:
        """Count a call.

        Args:
            call: the call.
            step: number of the optimizer step that follows it.
            of_params: how many tensors that optimizer holds gradients of.
            optimizer: its number.

        Returns:
            The event to write, or None where this call is not sampled.
        """
        place = place_of(call, of_params)
        key = (optimizer, *sorted(place.items()))
        known = self._counts.get(key)
        if known is None:
            known = self._counts[key] = {
                **place,
                "optimizer": optimizer,
                "max_norm": _number(call.max_norm),
                "count": 0,
                "first_step": step,
            }
        known["count"] += 1
        known["last_step"] = step
        if known["count"] > 1 and step >= ALL_BEFORE and step % EVERY:
            return None
        return event_of(call, step, of_params, optimizer)

    def summary(self) -> list[dict[str, Any]]:
        """Every way in which calls stood, with counts, the most frequent first."""
        return sorted(self._counts.values(), key=lambda place: -int(place["count"]))


def place_of(call: ClipCall, of_params: int) -> dict[str, Any]:
    """What tells a well-placed call from a misplaced one."""
    return {
        "by_value": call.by_value,
        "norm_type": _norm_type(call.norm_type),
        "unlimited": _number(call.max_norm) == math.inf,
        "before_backward": call.backward_since_step == 0,
        "after_step": call.after_step,
        "repeated": call.repeated > 0,
        "per_micro_batch": call.repeated > 0 and call.backward_since_clip > 0,
        "unscaled": call.scale is None,
        "partial": 0 < call.with_grad < of_params,
        "no_gradients": call.with_grad == 0,
        "on_gradients": call.on_gradients,
    }


def event_of(call: ClipCall, step: int, of_params: int, optimizer: int) -> dict[str, Any]:
    """A call as the run file's ``script_clip`` event has it."""
    return {
        "step": step,
        "optimizer": optimizer,
        "max_norm": _number(call.max_norm),
        "norm_type": _norm_type(call.norm_type),
        "norm": _number(call.norm),
        "coef": _number(call.coef),
        "params": call.with_grad,
        "passed": len(call.ids),
        "of_params": of_params,
        "backward_since_step": call.backward_since_step,
        "backward_since_clip": call.backward_since_clip,
        "repeated": call.repeated,
        "after_step": call.after_step,
        "unscaled": call.scale is None,
        "by_value": call.by_value,
        "on_gradients": call.on_gradients,
    }


def _number(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError):
        return math.nan


def _norm_type(p: float) -> float | str:
    return "inf" if p == math.inf else p
