"""SG411: a clip call with an infinite threshold, used to read the norm."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from steadygrad.rules.advice import code, hold_norm
from steadygrad.rules.base import Rule, finding
from steadygrad.rules.evidence.clips import MOST, Call, at, calls, figure, share
from steadygrad.rules.evidence.view import View
from steadygrad.rules.evidence.wording import percent
from steadygrad.rules.finding import Finding

HUGE = 1e12


def _unlimited(call: Call) -> bool:
    return figure(call, "max_norm", 1.0) >= HUGE


def check(view: View) -> Iterator[Finding]:
    clip_calls = calls(view)
    rate = share(clip_calls, _unlimited)
    if rate < MOST:
        return
    harmed = bool(np.isinf(view.norm).any())
    yield finding(
        view,
        "SG411",
        "warning",
        0.9,
        "The clip call has an infinite max_norm: it only reads the norm, and is not harmless.",
        evidence=[
            f"{percent(rate)} of the {len(clip_calls)} clip calls have max_norm=inf.",
            "With a single inf among the gradients it turns all of them into NaN (inf / inf)"
            + (", and this run had such a step." if harmed else "."),
        ],
        steps=at(clip_calls, _unlimited),
        tensors=[],
        causes=["the usual idiom for logging the norm"],
        fixes=[
            code(
                view,
                torch="import steadygrad.torch as sg\nnorm = sg.get_total_norm("
                "[p.grad for p in model.parameters() if p.grad is not None])  # only reads",
                keras="import steadygrad.keras as sg\nsg.attach(optimizer, clip='none')",
                jax="import steadygrad.jax as sg\nnorm = sg.global_norm(grads)",
            ),
            *hold_norm(view, note="to clip as well"),
        ],
        figures={"share": rate},
    )


RULE = Rule("SG411", "an infinite threshold as a log", check, supersedes=("SG402",))
