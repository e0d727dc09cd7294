"""The losses that a TensorFlow script has differentiated, and by which variables.

A script may ask for the gradients of several losses before it takes the first step, as one that
trains a generator and a discriminator does: each step's loss is that of its own variables.
"""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

import tensorflow as tf

from steadygrad.launch.tensorflow_script.by_hand import Variable, raw_variable

MOST_LOSSES = 8


@dataclass(eq=False)
class DifferentiatedLoss:
    """One loss; keeps no variable alive.

    Attributes:
        loss: it, without its loss scale.
        variables: by their ids.
    """

    loss: tf.Tensor
    variables: dict[int, weakref.ref[Variable]]

    def is_of(self, variables: Iterable[object]) -> bool:
        """Whether it was differentiated by one of these variables."""
        raw = map(raw_variable, variables)
        return any(id(v) in self.variables and self.variables[id(v)]() is v for v in raw)


class DifferentiatedLosses:
    """The losses that no step has taken yet."""

    def __init__(self) -> None:
        self._latest: tf.Tensor | None = None
        self._now: tf.Tensor | None = None
        self._lent: DifferentiatedLoss | None = None
        self._scaled: deque[tuple[tf.Tensor, tf.Tensor]] = deque(maxlen=MOST_LOSSES)
        self._waiting: deque[DifferentiatedLoss] = deque(maxlen=MOST_LOSSES)

    def scaled(self, scaled: tf.Tensor, loss: tf.Tensor) -> None:
        """A loss was multiplied by a loss scale."""
        self._scaled.append((scaled, loss))

    def heard(self, loss: object) -> None:
        """Gradients of this are asked for."""
        self._now = self._lent = None
        if getattr(loss, "shape", None) == ():
            plain = next((p for scaled, p in reversed(self._scaled) if scaled is loss), loss)
            self._now = self._latest = plain

    def heard_for(self, variables: Iterable[Variable]) -> None:
        """What was heard last was differentiated by these variables."""
        refs = {id(variable): weakref.ref(variable) for variable in variables}
        if refs and self._now is not None:
            self._waiting.append(DifferentiatedLoss(self._now, refs))

    def peek(self, variables: Iterable[object]) -> tf.Tensor | None:
        """The loss of a step of these variables, which takes it later.

        Args:
            variables: TensorFlow's or Keras'.

        Returns:
            The latest that was differentiated by one of them; where that is not known, the latest.
        """
        listed = list(variables)
        untaken = self._waiting if self._lent is None else [self._lent, *self._waiting]
        own = (one.loss for one in reversed(untaken) if one.is_of(listed))
        return next(own, self._latest)

    def take(self, variables: Iterable[object]) -> tf.Tensor | None:
        """As `peek`; the next step of these variables has another loss."""
        listed = list(variables)
        loss = self.peek(listed)
        if loss is self._latest:
            self._latest = None
        waiting = [one for one in self._waiting if not one.is_of(listed)]
        self._waiting = deque(waiting, maxlen=MOST_LOSSES)
        return loss

    def lend(self, variables: Iterable[Variable]) -> tf.Tensor | None:
        """As `take`; the next step of these variables has the same loss, unless it has its own."""
        listed = list(variables)
        loss = self.take(listed)
        if loss is not None:
            refs = {id(variable): weakref.ref(variable) for variable in listed}
            self._lent = DifferentiatedLoss(loss, refs)
        return loss
