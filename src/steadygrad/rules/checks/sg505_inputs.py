"""SG505: inputs far from unit size."""

from __future__ import annotations

from collections.abc import Iterator

from steadygrad.rules.advice import code
from steadygrad.rules.base import Rule, finding
from steadygrad.rules.checks.sg501_initialisation import normalised
from steadygrad.rules.evidence.inputs import Entrance, entrance
from steadygrad.rules.evidence.view import View
from steadygrad.rules.evidence.wording import number, times
from steadygrad.rules.finding import Finding

LARGE = 30.0


def check(view: View) -> Iterator[Finding]:
    seen = entrance(view)
    if seen is not None and seen.size > LARGE and (_suffers(view) or not normalised(view)):
        yield _finding(view, seen)


def _suffers(view: View) -> bool:
    """Whether the loss suffers: where it falls steadily, a later layer makes up for the inputs.

    Where it begins by shedding what the inputs' size alone put there, nothing did.
    """
    trend = view.loss_trend
    trouble = trend.stalled or trend.diverged or trend.plateau or trend.dear
    return not trend.recorded or trouble or bool(view.broken.any())


def _finding(view: View, seen: Entrance) -> Finding:
    name, size = view.tensors[seen.column].name, seen.size
    trend = view.loss_trend
    said = (
        [f"The loss goes from {number(trend.first)} to {number(trend.end)}."]
        if trend.recorded
        else []
    )
    return finding(
        view,
        "SG505",
        "warning" if _suffers(view) else "info",
        0.9,
        f"The inputs are not normalised: they enter {name} at {times(size)} unit size.",
        evidence=[
            f"At step {seen.step} the outputs of {name} have a standard deviation of "
            f"{number(seen.output)}; its weights would make {number(seen.output / size)} of unit "
            "inputs.",
            *said,
        ],
        steps=[seen.step],
        tensors=[name],
        causes=[
            "features in their raw units (pixels 0 to 255, prices, timestamps)",
            "one feature in other units than the rest",
        ],
        fixes=[
            code(
                view,
                torch="mean, std = x_train.mean(0), x_train.std(0) + 1e-6\nx = (x - mean) / std",
                keras="layer = keras.layers.Normalization(); layer.adapt(x_train)",
                jax="mean, std = x_train.mean(0), x_train.std(0) + 1e-6\nx = (x - mean) / std",
            )
        ],
        figures={"size": size},
    )


RULE = Rule(
    "SG505", "inputs that are not normalised", check, supersedes=("SG205", "SG202", "SG302")
)
