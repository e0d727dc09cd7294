"""Where a script's clip calls stand, in the words of the run file."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any

from steadygrad.runlog.clip_calls import CallBook, number
from steadygrad.torch.clip_calls.clips import ClipCall


def place_of(call: ClipCall, of_params: int) -> dict[str, Any]:
    """What tells a well-placed call from a misplaced one."""
    return {
        "by_value": call.by_value,
        "per_tensor": is_for_one(call, of_params),
        "norm_type": _norm_type(call.norm_type),
        "unlimited": number(call.max_norm) == math.inf,
        "before_backward": call.backward_since_step == 0,
        "after_step": call.after_step,
        "repeated": call.repeated > 0,
        "per_micro_batch": call.repeated > 0 and call.backward_since_clip > 0,
        "unscaled": call.scale is None,
        "partial": 0 < call.with_grad < of_params,
        "no_gradients": call.with_grad == 0,
        "on_gradients": call.on_gradients,
    }


def new_events(
    book: CallBook, calls: Iterable[ClipCall], step: int, of_params: int, optimizer: int
) -> Iterator[dict[str, object]]:
    """Count calls; the events of those that stand otherwise than the ones before.

    Args:
        book: counts them.
        calls: of one step.
        step: its number.
        of_params: how many parameters the step has.
        optimizer: number of the optimizer that takes it.

    Yields:
        Events for the run file.
    """
    for call in calls:
        like = call.like if call.with_grad == of_params else None
        place, for_one = place_of(call, of_params), is_for_one(call, of_params)
        if book.enter(place, step, optimizer, call.max_norm, for_one, like):
            yield event_of(call, step, of_params, optimizer)


def event_of(call: ClipCall, step: int, of_params: int, optimizer: int) -> dict[str, object]:
    """A call as the run file's ``script_clip`` event has it."""
    return {
        "step": step,
        "optimizer": optimizer,
        "max_norm": number(call.max_norm),
        "norm_type": _norm_type(call.norm_type),
        "norm": number(call.norm),
        "coef": number(call.coef),
        "params": call.with_grad,
        "passed": len(call.ids),
        "of_params": of_params,
        "backward_since_step": call.backward_since_step,
        "backward_since_clip": call.backward_since_clip,
        "repeated": call.repeated,
        "renewals": call.renewals,
        "after_step": call.after_step,
        "unscaled": call.scale is None,
        "by_value": call.by_value,
        "per_tensor": is_for_one(call, of_params),
        "on_gradients": call.on_gradients,
    }


def is_for_one(call: ClipCall, of_params: int) -> bool:
    """Whether it is for one parameter of several, as in a loop over them."""
    return len(call.ids) == 1 < of_params


def _norm_type(p: float) -> float | str:
    return "inf" if p == math.inf else p
