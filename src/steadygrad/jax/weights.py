"""Weights of a JAX run, sampled on the schedule that the other frameworks keep.

The parameters that a step has made are what the next one starts from; donated ones are gone
by then. So the few figures that are due are computed on the device at once, and read when
they have arrived; parameters themselves never come to the host.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np

from steadygrad.jax._whole import whole_here
from steadygrad.jax.engine import JaxEngine, leaf_names
from steadygrad.runlog import RunWriter
from steadygrad.runlog.sampled import WeightFigures, due, side_by_side, stride

if TYPE_CHECKING:
    from steadygrad.typing import PyTree


Figures = tuple[jax.Array, list[jax.Array]]
"""Norm of every parameter, and the elements of each that are followed."""


class WeightSamples:
    """Samples the parameters of one run.

    Args:
        first: the parameters that training starts from; None where they are not known.
    """

    def __init__(self, first: PyTree | None) -> None:
        self._names: tuple[str, ...] = ()
        self._figures: WeightFigures | None = None
        self._first = None if first is None else whole_here(_figures_of(first))

    def taken(self, params: PyTree, last: int) -> Figures | None:
        """Figures on the device, if any may be due.

        Args:
            params: what a step has made; None gives None.
            last: the number of the latest step that is known to have been entered. These may
                enter one or two later, or still that one where gradients are accumulated.

        Returns:
            Arrays to hand to `write`; None where nothing is due.
        """
        if params is None or not any(due(step) for step in range(last - 1, last + 3)):
            return None
        self._names = self._names or leaf_names(params)
        figures: Figures = _figures_of(params)
        return figures

    def write(self, writer: RunWriter, ids: Mapping[str, int], step: int, figures: Figures) -> None:
        """Write figures that have arrived.

        Args:
            writer: the run.
            ids: number of each named tensor in it.
            step: the number of the step that these weights enter.
            figures: what `taken` gave.
        """
        if self._figures is None:
            places = [i for i, name in enumerate(self._names) if name in ids]
            self._places = places
            self._ids = np.array([ids[self._names[i]] for i in places], np.int64)
            self._figures = WeightFigures(writer)
            if self._first is not None and step == 1:
                self._write(0, self._first)
            self._first = None
        self._write(step, figures)

    def _write(self, step: int, figures: Figures) -> None:
        assert self._figures is not None
        norms, parts = jax.tree.map(np.asarray, figures)
        chosen, starts = side_by_side([parts[i] for i in self._places])
        if self._figures.after(step):
            self._figures.finish(chosen)
        if due(step):
            finite = norms[self._places].astype(np.float64)
            self._figures.write(step, self._ids, finite, chosen, starts)


def _figures(params: PyTree) -> Figures:
    leaves = jax.tree.leaves(params)
    engine = JaxEngine()
    with engine.scope():
        norms = engine.norms(leaves, 2.0)[0].astype("float32")
    return norms, [_part(leaf) for leaf in leaves]


_figures_of = jax.jit(_figures)


def _part(leaf: jax.Array) -> jax.Array:
    """At most `TAKEN` of the elements, evenly spread."""
    part = jnp.ravel(leaf)[:: stride(leaf.size)]
    return part if jnp.iscomplexobj(part) else part.astype("float32")
