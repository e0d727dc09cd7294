"""The losses of a JAX script: the values of `jax.value_and_grad` and `jax.grad`.

A loss that was computed where the optimizer is traced goes into the step's own row. One from
another compiled function, or from inside of a `lax.scan` that adds up gradients, cannot: it
comes to the host by itself, and the host takes the mean of what came since the last step.
"""

from __future__ import annotations

import contextlib
import functools
import math
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, cast

import jax
import numpy as np

from steadygrad.invisible import leave_no_frame
from steadygrad.launch.jax_script.internals import (
    JaxTrace,
    holds_root,
    is_batched,
    is_differentiated,
    is_traced,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jax.typing import ArrayLike

    from steadygrad.launch.jax_script.telling import Moment
    from steadygrad.typing import PyTree

MOST_LOSSES = 8
MOST_ARRIVED = 64
"""Losses of eager code that wait for a step, where none may ever come."""

Differentiate = Callable[..., Callable[..., "tuple[PyTree, PyTree]"]]
"""A function to one that gives its value and its gradients."""


Reference = Callable[[], object]


class ScaledResult(Protocol):
    """What is asked of Flax' `DynamicScaleResult`."""

    aux: PyTree
    grad: PyTree


@dataclass(eq=False)
class LossOfGradients:
    """A loss, and its gradients, none of which it keeps in memory."""

    loss: ArrayLike
    gradients: list[Reference]

    def is_of(self, gradients: Sequence[jax.Array]) -> bool:
        """Whether one of these is among its gradients."""
        ids = set(map(id, gradients))
        return any(id(leaf) in ids for ref in self.gradients if (leaf := ref()) is not None)


def reference(leaf: object) -> Reference:
    """An array weakly; what knows no weak references, as it is."""
    try:
        return weakref.ref(leaf)
    except TypeError:
        return lambda: leaf


class Losses:
    """Hears the losses of one process.

    Attributes:
        wanted: whether an observer of optax is there to take them; nothing is heard before.
        unread: whether one was left alone, since reading it would have changed bits.
        scaled: whether one was multiplied by a loss scale.
    """

    def __init__(self) -> None:
        self.wanted = self.unread = self.scaled = False
        self._latest: ArrayLike | None = None
        self._untaken: deque[LossOfGradients] = deque(maxlen=MOST_LOSSES)
        self._arrived: list[tuple[ArrayLike, int]] = []
        self._sum, self._count = 0.0, 0
        self._lock = threading.Lock()
        self._nesting = threading.local()

    def heard(self, loss: ArrayLike, gradients: PyTree) -> None:
        """Note the value of a function that the script has differentiated."""
        if is_batched(loss) or is_differentiated(loss) or getattr(loss, "shape", None) != ():
            return
        if getattr(self._nesting, "discards", False) and is_traced(loss) and holds_root(loss):
            # XLA divides by a root otherwise where the root itself is needed too
            self._latest, self.unread = None, True
            return
        from steadygrad.launch.jax_script.telling import MAIL, tell, told_so_far  # loads optax

        self._latest = loss
        refs = [reference(leaf) for leaf in jax.tree.leaves(gradients)]
        self._untaken.append(LossOfGradients(loss, refs))
        if is_traced(loss):
            # as it is: an operation of ours could be fused with the loss, as the array is in which
            # lax.scan gathers losses, and XLA would make the sums inside of it apart for both
            tell(self.arrive, loss)
        else:
            if len(self._arrived) == MOST_ARRIVED:
                MAIL.empty()
            self._arrived = [*self._arrived[1 - MOST_ARRIVED :], (loss, told_so_far())]

    def is_gradient(self, value: object) -> bool:
        """Whether a value is as differentiation has left it, so that no code has clipped it."""
        return any(one.is_of([cast("jax.Array", value)]) for one in self._untaken)

    @contextlib.contextmanager
    def muted(self) -> Iterator[None]:
        """An optimizer works: what it differentiates itself, as a line search does, is its own."""
        before = getattr(self._nesting, "inside", False)
        self._nesting.inside = True
        try:
            yield
        finally:
            self._nesting.inside = before

    def arrive(self, loss: ArrayLike, moment: Moment | None = None) -> None:
        """A loss has come to the host: an operation of JAX here could wait for ever."""
        del moment  # they are heard in their order
        value = float(np.real(np.asarray(loss)))
        with self._lock:
            self._sum, self._count = self._sum + value, self._count + 1

    def here(self, trace: JaxTrace, gradients: Sequence[jax.Array]) -> ArrayLike | None:
        """The loss of a step, where it can be used in this trace; else None.

        Args:
            trace: where the step is traced.
            gradients: the step's.

        Returns:
            The loss that these are gradients of; the latest that is traced where that is not known.
        """
        own = next((one for one in reversed(self._untaken) if one.is_of(gradients)), None)
        if own is not None and trace.reaches(own.loss):
            self._untaken.remove(own)
            self._arrived = [one for one in self._arrived if one[0] is not own.loss]
            return own.loss
        return self._latest if is_traced(self._latest) and trace.reaches(self._latest) else None

    def since(self, number: float = math.inf) -> float:
        """The mean of the losses that came since the last call; NaN for none.

        Args:
            number: those of eager code alone that came when the queue had taken no more than this.
        """
        arrived = self._arrived
        self._arrived = [one for one in arrived if one[1] > number]
        for loss, place in arrived:
            if place <= number:
                self.arrive(loss)
        with self._lock:
            mean = self._sum / self._count if self._count else float("nan")
            self._sum, self._count = 0.0, 0
        return mean

    def watch(self, original: Differentiate) -> Differentiate:
        """`jax.value_and_grad`, wrapped so that the loss is heard."""

        @functools.wraps(original)
        def value_and_grad(
            fun: Callable[..., PyTree],
            argnums: int | Sequence[int] = 0,
            has_aux: bool = False,
            **options: object,
        ) -> Callable[..., tuple[PyTree, PyTree]]:
            function = original(fun, argnums, has_aux, **options)

            @functools.wraps(function)
            def hearing(*args: object, **kwargs: object) -> tuple[PyTree, PyTree]:
                outermost = self.wanted and not getattr(self._nesting, "inside", False)
                if not outermost:
                    return function(*args, **kwargs)
                self._nesting.inside = True
                try:
                    value, gradients = function(*args, **kwargs)
                except BaseException as error:
                    leave_no_frame(error)
                    raise
                finally:
                    self._nesting.inside = False
                loss = cast("tuple[PyTree, PyTree]", value)[0] if has_aux else value
                self._guarded(cast("ArrayLike", loss), gradients)
                return value, gradients

            return hearing

        return value_and_grad

    def watch_scaled(
        self, original: Callable[..., Callable[..., ScaledResult]]
    ) -> Callable[..., Callable[..., ScaledResult]]:
        """`value_and_grad` of Flax' `DynamicScale`, whose loss is heard without its scale."""

        @functools.wraps(original)
        def value_and_grad(*args: object, **options: object) -> Callable[..., ScaledResult]:
            function = original(*args, **options)
            has_aux = options.get("has_aux", args[3] if len(args) > 3 else False)

            @functools.wraps(function)
            def hearing(*inputs: object) -> ScaledResult:
                with self.muted():
                    result = function(*inputs)
                if self.wanted and not getattr(self._nesting, "inside", False):
                    self.scaled = True
                    loss = cast("tuple[PyTree, PyTree]", result.aux)[0] if has_aux else result.aux
                    self._guarded(cast("ArrayLike", loss), result.grad)
                return result

            return hearing

        return value_and_grad

    def watch_grad(
        self, original: Callable[..., Callable[..., PyTree]], hearing: Differentiate
    ) -> Callable[..., Callable[..., PyTree]]:
        """`jax.grad` made from the wrapped `value_and_grad`, so that the loss is heard."""

        @functools.wraps(original)
        def grad(
            fun: Callable[..., PyTree],
            argnums: int | Sequence[int] = 0,
            has_aux: bool = False,
            **options: object,
        ) -> Callable[..., PyTree]:
            plain = original(fun, argnums, has_aux, **options)
            function = hearing(fun, argnums, has_aux, **options)

            @functools.wraps(plain)
            def gradient(*args: object, **kwargs: object) -> PyTree:
                if not self.wanted:
                    return plain(*args, **kwargs)
                before = getattr(self._nesting, "discards", False)
                self._nesting.discards = not has_aux
                try:
                    value, gradients = function(*args, **kwargs)
                except BaseException as error:
                    leave_no_frame(error)
                    raise
                finally:
                    self._nesting.discards = before
                if has_aux:
                    return gradients, cast("tuple[PyTree, PyTree]", value)[1]
                return gradients

            return gradient

        return grad

    def _guarded(self, loss: ArrayLike, gradients: PyTree) -> None:
        try:
            self.heard(loss, gradients)
        except Exception:  # a loss that is not heard is NaN in the file
            self._latest = None
