"""Weight figures of a Keras run, on the schedule that the PyTorch path keeps.

Keras compiles the training step, so nothing can be read inside of it at a few steps only.
Weights are read between two steps instead: what stands there after one step is what the
next one starts from. Activations are out of reach here, and so are the rules on them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from steadygrad.keras.engines import to_numpy
from steadygrad.runlog import RunWriter
from steadygrad.runlog.sampled import (
    WeightFigures,
    next_due,
    side_by_side,
    spectral_radius,
    stride,
)

if TYPE_CHECKING:
    import keras


class VariableSampler:
    """Writes weight norms, deviations, update ratios and recurrent radii of one optimizer.

    Args:
        writer: an open run.
        variables: the optimizer's, in the order of ``ids``.
        ids: their numbers in the writer.
        lengths: time steps of each variable's layer; 0 for what is not recurrent.
        read: gives a variable's value on the host.
    """

    def __init__(
        self,
        writer: RunWriter,
        variables: Sequence[keras.Variable],
        ids: NDArray[np.int64],
        lengths: Sequence[int],
        read: Callable[[keras.Variable], NDArray[np.generic]] = to_numpy,
    ) -> None:
        self._read = read
        self._writer, self._variables, self._ids = writer, list(variables), ids
        self._lengths = np.asarray(lengths, np.int64)
        self._next = 0
        self._figures = WeightFigures(writer)

    def at_step(self, step: int, values: Sequence[NDArray[np.generic]] | None = None) -> None:
        """Measure what is due; call it after a step, with the number of the next one.

        Args:
            step: the number of the step that these weights enter.
            values: the weights, on the host; read from the variables where None.
        """
        ends, begins = self._figures.after(step), step >= self._next
        if not ends and not begins:
            return
        arrays = [self._read(v) for v in self._variables] if values is None else values
        wide = [np.asarray(v, np.float64) for v in arrays]
        parts, starts = side_by_side([_part(v) for v in wide])
        if ends:
            self._figures.finish(parts)
        if begins:
            self._next = next_due(step + 1)
            norms = np.array([np.linalg.norm(v.ravel()) for v in wide])
            self._figures.write(step, self._ids, norms, parts, starts)
            self._write_radii(step, wide)

    def wait(self, step: int) -> int:
        """Steps until something may be due, from step ``step`` on; at least 1."""
        return 1 if self._figures.waits else max(1, self._next - step)

    def _write_radii(self, step: int, values: list[NDArray[np.float64]]) -> None:
        places = np.flatnonzero(self._lengths)
        if len(places):
            radii = np.array([spectral_radius(values[i]) for i in places])
            ids, lengths = self._ids[places], self._lengths[places].astype(np.float64)
            self._writer.write_sample("spectral_radius", step, ids, radii)
            self._writer.write_sample("recurrent_steps", step, ids, lengths)


def owners(model: keras.Model | None) -> dict[int, str]:
    """The class name of the layer that owns each of a model's variables, by the variable's id.

    Example:
        >>> import keras
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
        >>> sorted(owners(model).values())
        ['Dense', 'Dense']
    """
    return {
        id(v): type(layer).__name__ for layer in _layers(model) for v in layer._trainable_variables
    }


def recurrent_lengths(model: keras.Model | None) -> dict[int, int]:
    """The number of time steps of each recurrent kernel, by its id, where the model fixes it.

    Example:
        >>> import keras
        >>> model = keras.Sequential([keras.Input((7, 2)), keras.layers.SimpleRNN(3)])
        >>> list(recurrent_lengths(model).values())
        [7]
    """
    lengths = {}
    for layer in _layers(model):
        kernel = getattr(getattr(layer, "cell", None), "recurrent_kernel", None)
        nodes = getattr(layer, "_inbound_nodes", None)
        if kernel is not None and nodes:
            lengths[id(kernel)] = int(nodes[0].input_tensors[0].shape[1] or 0)
    return lengths


def _layers(model: keras.Model | None) -> list[keras.layers.Layer]:
    return [] if model is None else list(model._flatten_layers(include_self=False))


def _part(value: NDArray[np.float64]) -> NDArray[np.float64]:
    """At most `TAKEN` of the elements, evenly spread."""
    flat = value.ravel()
    return flat[:: stride(flat.size)]
