"""SG501: initial weights far from what their fan-in calls for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from steadygrad.rules.advice import code, jax_weights
from steadygrad.rules.base import Rule, finding
from steadygrad.rules.evidence.inputs import fan_in
from steadygrad.rules.evidence.loop import found_at_once
from steadygrad.rules.evidence.steps import Array
from steadygrad.rules.evidence.view import View
from steadygrad.rules.evidence.wording import number, times
from steadygrad.rules.finding import Finding

LARGE = 2.8
SMALL = 0.1
"""Standard deviation times sqrt(fan-in): 1 for LeCun, 1.41 for He, 0.58 for PyTorch's default."""


ARRIVES = 0.9
"""Share of a loss whose fall says that the signal arrives."""
LEFT = 1e-6
"""Share of a signal under which what the layers leave of it together is nothing."""


@dataclass(frozen=True)
class _Start:
    """Standard deviations of the weights before the first step, and what they should be."""

    columns: Array
    std: Array
    fan_in: Array

    @property
    def gain(self) -> Array:
        return self.std * np.sqrt(self.fan_in)


def _start(view: View) -> _Start | None:
    steps, table = view.sample("weight_std")
    if not len(steps) or steps[0] > 1:
        return None
    columns = np.array([i for i in view.weights if np.isfinite(table[0, i])], dtype=np.int64)
    fans = np.array([fan_in(view, int(i)) for i in columns], dtype=np.float64)
    return _Start(columns, table[0, columns], fans) if len(columns) >= 2 else None


def check(view: View) -> Iterator[Finding]:
    start = _start(view)
    if start is None:
        return
    same = start.std == 0
    typical = float(np.median(start.gain))
    if same.sum() >= 2 and same.mean() > 0.6:
        yield _constant(view, start, same)
    elif typical > LARGE and (_suffers(view) or not normalised(view)):
        yield _wrong(view, start, typical, "large")
    elif _is_small(start, typical) and not normalised(view) and _starves(view, start, typical):
        yield _wrong(view, start, typical, "small")


def _is_small(start: _Start, typical: float) -> bool:
    """Each layer by itself, or all of them together: 16 layers of 0.12 leave nothing."""
    together = typical ** len(start.columns)
    return typical < SMALL or (typical < 3 * SMALL and together < LEFT)


def _suffers(view: View) -> bool:
    trend = view.loss_trend
    stalled = trend.stalled and not found_at_once(view)
    trouble = not trend.recorded or stalled or trend.diverged or trend.dear
    return trouble or bool(view.broken.any())


def _starves(view: View, start: _Start, typical: float) -> bool:
    """Whether the signal is lost on its way through the layers, or the loss shows that it was."""
    lost = typical ** len(start.columns) < LEFT and view.loss_trend.fall < ARRIVES
    plateau = view.loss_trend.plateau and not found_at_once(view)
    return _suffers(view) or plateau or (lost and not found_at_once(view))


def normalised(view: View) -> bool:
    """Whether layers of the model normalise: they take any size of weights or inputs back."""
    return any("Norm" in t.module for t in view.tensors)


def _constant(view: View, start: _Start, same: Array) -> Finding:
    names = [view.tensors[i].name for i in start.columns[same]]
    return finding(
        view,
        "SG501",
        "error",
        0.95,
        f"{len(names)} weight matrices start as constants: their units can never differ.",
        evidence=[
            f"The standard deviation is exactly 0 before the first step in {', '.join(names[:5])}.",
            _loss(view),
        ],
        steps=[int(view.step[0])],
        tensors=names[:8],
        causes=["an initialisation with zeros or one constant"],
        fixes=[_differ(view, names), _fix(view)],
        figures={"matrices": len(names)},
    )


def _wrong(view: View, start: _Start, typical: float, size: str) -> Finding:
    order = np.argsort(start.gain)
    worst = order[::-1] if size == "large" else order
    names = [view.tensors[i].name for i in start.columns[worst]]
    first = int(worst[0])
    he = float(np.sqrt(2 / start.fan_in[first]))
    xavier = he / np.sqrt(2)
    ratio = typical if size == "large" else 1 / max(typical, 1e-12)
    return finding(
        view,
        "SG501",
        _severity(view, typical),
        min(0.97, 0.85 + 0.05 * float(np.log10(max(ratio, 1)))),
        f"Initial weights are too {size}: {times(typical)} the standard deviation that "
        "keeps a signal's size.",
        evidence=[
            f"{names[0]} starts with a standard deviation of {number(float(start.std[first]))}; "
            f"its fan-in of {start.fan_in[first]:.0f} calls for {number(he)} (He, ReLU) or "
            f"{number(float(xavier))} (Xavier, tanh).",
            f"Median over {len(start.columns)} matrices: {times(typical)} 1/sqrt(fan-in).",
            _loss(view),
        ],
        steps=[int(view.step[0])],
        tensors=names[:8],
        causes=[
            "an initialisation with a fixed standard deviation, whatever the fan-in",
            "weights copied from a layer of another width",
        ],
        fixes=[_fix(view)],
        figures={"gain": typical},
    )


def _severity(view: View, typical: float) -> str:
    """How grave it is: weights that training got over are worth knowing, and no more."""
    harmless = LARGE < typical <= 3 * LARGE and not _suffers(view)
    return "info" if harmless else "error"


def _loss(view: View) -> str:
    trend = view.loss_trend
    if not trend.recorded:
        return view.loss_sentence
    return f"The loss starts at {number(trend.start)} and gets to {number(trend.lowest)}."


def _differ(view: View, names: list[str]) -> str:
    """Code that draws these matrices at random, whatever module holds them."""
    listed = "".join(f'"{name}", ' for name in names[:8]).rstrip()
    return code(
        view,
        torch=f"for name in ({listed}):\n"
        "    nn.init.kaiming_normal_(dict(model.named_parameters())[name])\n"
        "# of two factors that are multiplied, one may start at 0",
        keras='keras.layers.Dense(n, kernel_initializer="he_normal")',
        jax=jax_weights(view, "he_normal"),
    )


def _fix(view: View) -> str:
    return code(
        view,
        torch="for m in model.modules():\n    if isinstance(m, (nn.Linear, nn.Conv2d)):\n"
        '        nn.init.kaiming_normal_(m.weight, nonlinearity="relu")  # tanh: xavier_normal_\n'
        "        nn.init.zeros_(m.bias)",
        keras='keras.layers.Dense(n, kernel_initializer="he_normal")  # tanh: "glorot_normal"',
        jax=jax_weights(view, "he_normal"),
    )


RULE = Rule(
    "SG501",
    "an initialisation out of range",
    check,
    supersedes=("SG203", "SG301", "SG302", "SG304", "SG205", "SG201", "SG202"),
)
