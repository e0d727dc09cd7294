"""How large what enters the first layer is, told by what comes out of it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from steadygrad.rules.evidence.view import View
from steadygrad.vocabulary import Sample

UNIT = 3.0
"""Up to this many times unit size, inputs count as normalised."""
LATEST = 2
"""The last step whose weights are still about those that training began with."""


def fan_in(view: View, column: int) -> int:
    """Inputs of one unit: PyTorch keeps them in the later axes, Keras and JAX in the earlier."""
    shape = view.tensors[column].shape
    return int(np.prod(shape[1:] if view.framework == "torch" else shape[:-1]))


@dataclass(frozen=True)
class Entrance:
    """What one early step shows of the inputs.

    Attributes:
        column: the first layer's weight.
        step: number of the step; outputs and weights are both of it.
        output: standard deviation of the layer's outputs.
        size: that over what its weights would make of inputs of unit size.
    """

    column: int
    step: int
    output: float
    size: float


def entrance(view: View) -> Entrance | None:
    """The first step at which the first layer's weights and outputs were both sampled, if early."""
    if not len(view.weights):
        return None
    first = int(view.weights[0])
    deviations, outputs = (
        _by_step(view, "weight_std", first),
        _by_step(view, "activation_std", first),
    )
    for step in sorted(deviations.keys() & outputs.keys()):
        gain = deviations[step] * math.sqrt(fan_in(view, first))
        if step <= LATEST and gain > 0:
            return Entrance(first, step, outputs[step], outputs[step] / gain)
    return None


def input_size(view: View) -> float:
    """Size of the inputs, 1 for unit size; NaN where it was not sampled."""
    first_layer = entrance(view)
    return math.nan if first_layer is None else first_layer.size


def _by_step(view: View, name: Sample, column: int) -> dict[int, float]:
    steps, table = view.sample(name)
    pairs = zip(steps.tolist(), table[:, column].tolist(), strict=True)
    return {step: value for step, value in pairs if math.isfinite(value)}
