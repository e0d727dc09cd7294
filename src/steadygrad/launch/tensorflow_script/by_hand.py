"""Loops that move their variables themselves: ``variable.assign_sub(rate * gradient)``.

Nothing but the variable's own methods is called in such a loop, so a step is the first change of a
variable after its gradient was asked for; the others of that call belong to it.
"""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol, cast

import tensorflow as tf

from steadygrad.tensorflow.engine import Gradient

MOST_OPERATIONS = 64
"""How far back in a graph a change is followed to the gradient that it is made of."""
MOST_FORMS = 8
MOST_WAITING = 16

Ids = tuple[int, ...]


class Variable(Protocol):
    """What is asked of a variable."""

    name: str
    shape: Sequence[int]
    dtype: object


@dataclass(eq=False)
class VariablesByHand:
    """Variables that are differentiated and moved together: what stands for their optimizer."""

    variables: list[weakref.ref[Variable]]

    def holds(self, variables: Sequence[Variable]) -> bool:
        """Whether these are its variables."""
        pairs = zip(self.variables, variables, strict=True)
        return all(ref() is variable for ref, variable in pairs)


@dataclass(eq=False)
class AskedGradients:
    """What one call for gradients has returned; keeps none of them alive.

    Attributes:
        owner: stands for the variables.
        forms: of each variable's gradient, as it was returned and as clip calls have left it.
        calls: how often these variables were differentiated since they were moved last.
    """

    owner: VariablesByHand
    forms: list[list[weakref.ref[Gradient]]]
    calls: int = 1

    def clipped(self, before: Gradient, after: Gradient) -> None:
        """A clip call has made one tensor of another."""
        for forms in self.forms:
            if any(form() is before for form in forms[-MOST_FORMS:]):
                forms.append(weakref.ref(after))

    def applied(self, place: int, change: object) -> list[Gradient | None]:
        """The gradients that the variables are moved by.

        Args:
            place: of the variable that is moved first.
            change: what it is moved by.

        Returns:
            One a variable; None for those of which none is left.
        """
        depth = self._depth_in(place, change)
        return [_latest(forms[: None if depth is None else depth + 1]) for forms in self.forms]

    def _depth_in(self, place: int, change: object) -> int | None:
        """Which form of a gradient a change is made of, in a graph; None where that is not seen."""
        forms = {id(form()): i for i, form in enumerate(self.forms[place]) if form() is not None}
        return next((forms[id(t)] for t in _behind(change) if id(t) in forms), None)


@dataclass
class UpdatesByHand:
    """Gradients that were asked for, until their variables are moved."""

    _waiting: dict[Ids, AskedGradients] = field(default_factory=dict)

    def differentiated(self, sources: object, gradients: object) -> None:
        """A tape has returned these gradients of these sources."""
        pairs = gradients_of(sources, gradients)
        if not pairs:
            return
        variables = [variable for variable, _ in pairs]
        key = tuple(map(id, variables))
        forms = [[weakref.ref(gradient)] for _, gradient in pairs]
        before = self._waiting.pop(key, None)
        asked = AskedGradients(VariablesByHand([weakref.ref(v) for v in variables]), forms)
        if before is not None and before.owner.holds(variables):
            asked.calls = before.calls + 1
        self._waiting[key] = asked
        while len(self._waiting) > MOST_WAITING:
            del self._waiting[next(iter(self._waiting))]

    def clipped(self, before: Sequence[Gradient], after: Sequence[Gradient]) -> None:
        """A clip call has made some tensors of others."""
        for asked in self._waiting.values():
            for tensor, returned in zip(before, after, strict=True):
                if returned is not tensor:
                    asked.clipped(tensor, returned)

    def moves(self, variable: object) -> AskedGradients | None:
        """A variable is about to be moved: the gradients whose step this is, taken from here."""
        key = next((key for key in self._waiting if id(variable) in key), None)
        return None if key is None else self._waiting.pop(key)

    def forget(self) -> None:
        """An optimizer takes a step: what is moved from here on is its work."""
        self._waiting.clear()

    @property
    def waits(self) -> bool:
        """Whether gradients wait to be applied."""
        return bool(self._waiting)


def gradients_of(sources: object, gradients: object) -> list[tuple[Variable, Gradient]]:
    """TensorFlow's variables among what was differentiated by, each with its gradient."""
    pairs = zip(map(raw_variable, _flat(sources)), _flat(gradients), strict=False)
    return [
        (cast("Variable", variable), cast("Gradient", gradient))
        for variable, gradient in pairs
        if isinstance(variable, tf.Variable) and gradient is not None
    ]


def variables_in(sources: object) -> list[Variable]:
    """TensorFlow's variables among what a tape was asked to differentiate by."""
    raw = map(raw_variable, _flat(sources))
    return [cast("Variable", source) for source in raw if isinstance(source, tf.Variable)]


def raw_variable(source: object) -> object:
    """The variable of TensorFlow that one of Keras stands for."""
    inner = getattr(source, "_value", None)
    return inner if isinstance(inner, tf.Variable) else source


def _flat(values: object) -> list[object]:
    return list(tf.nest.flatten(values, expand_composites=False))


def _latest(forms: Sequence[weakref.ref[Gradient]]) -> Gradient | None:
    return next((form for ref in reversed(forms) if (form := ref()) is not None), None)


def _behind(change: object) -> Iterator[object]:
    """A tensor of a graph, and those that it is computed from, nearest first."""
    values = change.values if isinstance(change, tf.IndexedSlices) else change
    waiting, seen = deque([change, values]), set[int]()
    while waiting and len(seen) < MOST_OPERATIONS:
        tensor = waiting.popleft()
        if id(tensor) in seen:
            continue
        seen.add(id(tensor))
        yield tensor
        if not tf.executing_eagerly() and tf.is_tensor(tensor) and hasattr(tensor, "op"):
            waiting.extend(tensor.op.inputs)
