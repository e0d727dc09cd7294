"""SG507: targets, or a whole training, of a size that no weights begin at."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from steadygrad.robust import median
from steadygrad.rules.advice import code
from steadygrad.rules.base import Rule, finding
from steadygrad.rules.evidence.depth import Profile, profiles
from steadygrad.rules.evidence.inputs import UNIT, input_size
from steadygrad.rules.evidence.loop import sizes_of, summed_of
from steadygrad.rules.evidence.view import View
from steadygrad.rules.evidence.wording import number, times
from steadygrad.rules.finding import Finding
from steadygrad.runlog.info import SizeFacts

LARGE = 100.0
"""Times the outputs from which targets are out of their reach."""
FAR = 1000.0
"""The same where targets are guessed from the loss, which may be a sum."""
ABSURD = 1e6
"""A first gradient norm, or a first loss, that unit inputs and targets do not give."""
DEEP, A_LAYER = 6, 1.5
"""Layers, and what each multiplies its inputs by, from which outputs grow by depth: no sum's."""
LEFT, MUCH_LEFT = 0.1, 0.5
"""Shares of the first loss that say how much the training suffers."""


def check(view: View) -> Iterator[Finding]:
    sizes, guess = sizes_of(view), _guessed(view)
    if sizes is not None:
        outputs = max(sizes["outputs"], 1.0)
        left = max(_left(view), _unexplained(view, sizes))
        if LARGE * outputs < sizes["targets"] < math.inf and left > LEFT:
            yield _targets(view, sizes["targets"], sizes["outputs"], sizes["loss"], left)
            return
    elif guess is not None and _left(view) > LEFT:
        yield _targets(view, *guess, "", _left(view))
        return
    first = _first_norm(view)
    if ABSURD < first < math.inf and not view.broken.any():
        yield _everything(view, first)
    elif sizes is None and not view.broken.any():
        yield from _outputs(view)


def _left(view: View) -> float:
    """Share of the first loss that is left at the end; 0 where that says nothing."""
    trend = view.loss_trend
    if not trend.recorded or trend.signed or not trend.first > 0:
        return 0.0
    return trend.end / trend.first


def _unexplained(view: View, sizes: SizeFacts) -> float:
    """The last loss over what the mean of the targets gives: 1 where only the mean was learned."""
    spread = sizes.get("spread", 0.0)  # files of earlier versions have none
    constant = spread * spread if sizes["loss"] == "mse_loss" else spread  # inf, where ** raises
    trend = view.loss_trend
    return trend.end / constant if trend.recorded and constant > 0 else 0.0


def _guessed(view: View) -> tuple[float, float] | None:
    """Sizes of targets and outputs as a squared error gives them; None where it is nothing such."""
    _, table = view.sample("activation_std")
    trend = view.loss_trend
    if not len(table) or not len(view.weights) or not trend.recorded or not trend.first > ABSURD:
        return None
    outputs = float(table[0, view.weights[-1]])
    targets = math.sqrt(trend.first / max(summed_of(view), 1))
    inside = not input_size(view) > UNIT * 10
    return (targets, outputs) if inside and targets > FAR * max(outputs, 1.0) else None


def _first_norm(view: View) -> float:
    first = view.norm[:3][view.usable[:3]]
    return median(first) if first.size else math.nan


def _targets(view: View, targets: float, outputs: float, loss: str, left: float) -> Finding:
    seen = (
        f"In the graph of the first {loss}, targets have a root mean square of {number(targets)}, "
        f"and outputs one of {number(outputs)}."
        if loss
        else f"The first loss is {number(view.loss_trend.first)}: of a squared error, targets are "
        f"about {number(targets)}. The last layer's outputs deviate by {number(outputs)}."
    )
    return finding(
        view,
        "SG507",
        "error" if left > MUCH_LEFT else "warning",
        0.95 if loss else 0.85,
        f"The targets are not scaled: {number(targets)} in size, where the model gives "
        f"{number(outputs)}.",
        evidence=[
            seen,
            "Steps are made for weights and outputs of unit size: what they reach is the targets' "
            "mean, if that, and no clip or rate makes up for the difference.",
            view.loss_sentence,
        ],
        steps=[int(view.step[0]), int(view.step[-1])],
        tensors=[view.tensors[view.weights[-1]].name] if len(view.weights) else [],
        causes=["targets in their raw units (prices, counts, timestamps)"],
        fixes=[_standardise(view)],
        figures={"targets": targets, "outputs": outputs},
    )


def _everything(view: View, first: float) -> Finding:
    size = input_size(view)
    if np.isfinite(size):
        inputs = f"The inputs enter the first layer at {times(size)} unit size."
    else:
        inputs = "How large the inputs are is not on record."
    return finding(
        view,
        "SG507",
        "warning" if _left(view) > MUCH_LEFT else "info",
        0.5,
        f"The first gradients have a norm of {number(first)}: something is not scaled.",
        evidence=[
            "Inputs, targets and weights of unit size give norms of about 1 for a loss that is a "
            "mean.",
            inputs,
            view.loss_sentence,
        ],
        steps=[int(view.step[0])],
        tensors=[],
        causes=[
            "inputs or targets in their raw units",
            "a sum over a batch, a picture or all neighbours where a mean is meant",
            "weights that are initialised too large",
        ],
        fixes=[_standardise(view)],
        figures={"norm": first},
    )


def _outputs(view: View) -> Iterator[Finding]:
    """Outputs a thousand times unit size, made of inputs that are not."""
    steps, table = view.sample("activation_std")
    if len(steps) < 2 or not len(view.weights):
        return
    column = int(view.weights[-1])
    first, last = float(table[0, column]), float(table[-1, column])
    if not (first > FAR and last > FAR and input_size(view) < UNIT * 10):
        return
    if any(_grows(profile) for profile in profiles(view, table[:1], view.weights)):
        return
    name = view.tensors[column].name
    yield finding(
        view,
        "SG507",
        "warning",
        0.6,
        f"The outputs are not scaled: they leave {name} at {times(first)} unit size.",
        evidence=[
            f"The inputs enter at {times(input_size(view))} unit size. At step "
            f"{steps[0]} the outputs of {name} have a standard deviation of {number(first)}, at "
            f"step {steps[-1]} of {number(last)}.",
            view.loss_sentence,
        ],
        steps=[int(steps[0]), int(steps[-1])],
        tensors=[name],
        causes=[
            "sums over neighbours, tokens or time steps where means are meant",
            "weights that are initialised too large, with no normalisation between them",
        ],
        fixes=[
            code(
                view,
                torch="h = adjacency @ h / adjacency.sum(1, keepdim=True)  # a mean\n"
                "# or nn.LayerNorm(n) behind each layer that sums",
                keras="keras.layers.LayerNormalization()  # behind each layer that sums",
                jax="h = adjacency @ h / adjacency.sum(1, keepdims=True)  # or nn.LayerNorm()",
            )
        ],
        figures={"first": first, "last": last},
    )


def _grows(sizes: Profile) -> bool:
    """Whether outputs grow from layer to layer through many: the weights are at fault."""
    return len(sizes.norms) >= DEEP and sizes.per_layer < 1 / A_LAYER


def _standardise(view: View) -> str:
    return code(
        view,
        torch="mean, std = y_train.mean(), y_train.std()\n"
        "y = (y - mean) / std  # and inputs alike\n"
        "prediction = model(x) * std + mean",
        keras="y_train = (y_train - mean) / std  # before fit, and inputs alike\n"
        "prediction = model.predict(x) * std + mean",
        jax="y = (y - mean) / std  # and inputs alike\nprediction = model(params, x) * std + mean",
    )


RULE = Rule(
    "SG507",
    "targets that are not scaled",
    check,
    supersedes=("SG201", "SG202", "SG301", "SG302", "SG305", "SG401", "SG605", "SG607"),
)
