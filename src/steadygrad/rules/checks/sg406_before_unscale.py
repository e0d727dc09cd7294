"""SG406: clipping gradients that still carry the loss scale."""

from __future__ import annotations

from collections.abc import Iterator

from steadygrad.robust import median
from steadygrad.rules.base import Rule, finding
from steadygrad.rules.evidence.clips import MOST, Call, at, calls, figure, share
from steadygrad.rules.evidence.placed import fixes
from steadygrad.rules.evidence.view import View
from steadygrad.rules.evidence.wording import number, percent
from steadygrad.rules.finding import Finding

_ORDER = (
    "scaler.scale(loss).backward()\nscaler.unscale_(optimizer)\n{clip}\n"
    "scaler.step(optimizer)\nscaler.update()"
)


def _scaled(call: Call) -> bool:
    return call.get("unscaled") is False


def check(view: View) -> Iterator[Finding]:
    clip_calls = calls(view)
    rate = share(clip_calls, _scaled)
    if rate < MOST:
        return
    norms = [figure(c, "norm") for c in clip_calls if _scaled(c)]
    scale = median(view.loss_scale[view.loss_scale != 1])
    yield finding(
        view,
        "SG406",
        "error",
        0.95,
        "Gradients are clipped before unscale_(): the norm still carries the loss scale.",
        evidence=[
            f"{percent(rate)} of the {len(clip_calls)} clip calls act on scaled gradients.",
            f"The norms they see have a median of {number(median(norms))}; the loss scale is "
            f"{number(scale)}, so the threshold is in truth "
            f"{number(figure(clip_calls[-1], 'max_norm') / scale)}.",
        ],
        steps=at(clip_calls, _scaled),
        tensors=[],
        causes=["scaler.unscale_(optimizer) is missing above the clip call"],
        fixes=fixes(view, clip_calls[-1], _ORDER),
        figures={"share": rate, "loss_scale": scale},
    )


RULE = Rule(
    "SG406", "clipping before unscale_", check, supersedes=("SG401", "SG402", "SG504", "SG106")
)
