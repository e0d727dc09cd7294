"""The gradients that TensorFlow has returned, until a step is given them or what became of them.

What a script computes of them by arithmetic before a step may be a clip: figures of both tell.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass

import tensorflow as tf

from steadygrad.launch.tensorflow_script.by_hand import Variable, gradients_of, raw_variable
from steadygrad.launch.tensorflow_script.clips import behind, graph_of
from steadygrad.launch.tensorflow_script.side import reached
from steadygrad.tensorflow.engine import Gradient


@dataclass(eq=False)
class TapedGradient:
    """What was returned for one variable.

    Attributes:
        variable: it.
        graph: that is being traced; None in eager code.
        gradient: it; None where the variable was differentiated several times since its last
            step, as where micro-batches are added up.
    """

    variable: weakref.ref[Variable]
    graph: weakref.ref[tf.Graph] | None
    gradient: Gradient | None


class TapedGradients:
    """The gradients of each variable since its last step."""

    def __init__(self) -> None:
        self._of: dict[int, TapedGradient] = {}

    def differentiated(self, sources: object, gradients: object) -> None:
        """These gradients of these sources were returned."""
        for variable, gradient in gradients_of(sources, gradients):
            last = self._of.get(id(variable))
            graph = graph_of(gradient)
            again = (
                last is not None
                and last.variable() is variable
                and (None if last.graph is None else last.graph()) is graph
                and last.gradient is not gradient
            )
            self._of[id(variable)] = TapedGradient(
                weakref.ref(variable),
                None if graph is None else weakref.ref(graph),
                None if again else gradient,
            )

    def taken(
        self, variables: Sequence[object], applied: Sequence[Gradient]
    ) -> list[Gradient] | None:
        """Take the gradients of the variables that a step moves.

        Args:
            variables: TensorFlow's or Keras'.
            applied: what the step is given for each.

        Returns:
            What was returned for each; None where the step is given just that, and where what
            was returned is not known or cannot be read here.
        """
        raw = [raw_variable(variable) for variable in variables]
        rows = [self._of.pop(id(variable), None) for variable in raw]
        pairs = zip(rows, raw, strict=True)
        own = [
            row.gradient
            for row, variable in pairs
            if row is not None and row.gradient is not None and row.variable() is variable
        ]
        if len(own) < len(raw):
            return None
        eager = tf.executing_eagerly()
        if not all((graph_of(each) is None) == eager and reached(each) for each in own):
            return None
        if len(own) == 1 and not eager and graph_of(own[0]) is not tf.compat.v1.get_default_graph():
            return None  # behind a condition micro-batches may have been added up: one tensor's
            # figures do not tell that from a clip
        both = zip(own, applied, strict=True)
        unchanged = all(any(each is was for each in behind(now)) for was, now in both)
        return None if unchanged else own
