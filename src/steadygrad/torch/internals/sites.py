"""The functions of torch whose calls are observed, each changed once for all who listen.

A listener is told of a call by its arguments and may answer with a `Visit`. While anybody listens,
the function's own code tells of its calls (see `inlay`); where that cannot be, the function is
wrapped in the places that are known to hold it.
"""

from __future__ import annotations

import functools
import inspect
import sys
import types
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.amp.grad_scaler import GradScaler

from steadygrad.invisible import invisible
from steadygrad.kernels import native
from steadygrad.torch.internals.eager import eager
from steadygrad.torch.internals.inlay import Arguments, Begin, Visit, inlay
from steadygrad.torch.internals.private import graph_task, is_wrapped

Undo = Callable[[], bool]


class Site:
    """One function of torch.

    Args:
        name: of the function.
        places: the modules or classes that hold it.
        guarded: see `inlay`.

    Attributes:
        name: of the function.
        parameters: names of its parameters, in order.
    """

    def __init__(self, name: str, places: Sequence[object], guarded: bool = True) -> None:
        self.name, self._guarded = name, guarded
        self._places = [place for place in places if hasattr(place, name)]
        self._listeners: list[Begin] = []
        self._gate: Any = eager(self._begin)
        self._heard = False
        self._undo: list[Undo] = []
        self.parameters: tuple[str, ...] = ()
        if self._places:
            signature = inspect.signature(vars(self._places[0])[name])
            self.parameters = tuple(signature.parameters)

    @property
    def exists(self) -> bool:
        """Whether this release of torch has the function."""
        return bool(self._places)

    def listen(self, listener: Begin) -> Undo:
        """Tell a listener of every call.

        Args:
            listener: must not raise; those that came first are told first.

        Returns:
            A function that ends it. It gives False where somebody has changed the function
            since, so that it cannot be put back now.
        """
        self._listeners = [*self._listeners, listener]
        self._aim(heard=False)
        if not self._undo and self._places:
            self._change()

        def undo() -> bool:
            self._listeners = [each for each in self._listeners if each is not listener]
            self._aim(heard=False)
            if not self._listeners:
                self._undo[:] = [each for each in self._undo if not each()]
            return not self._undo or bool(self._listeners)

        return undo

    def _aim(self, heard: bool) -> None:
        """Tell a listener that is alone at once, once a call has shown that it brings in no second.

        Args:
            heard: those that listen now have been told of a call.
        """
        self._heard = heard
        if type(self._gate) is native.GATE:
            alone = heard and len(self._listeners) == 1
            self._gate.function = self._listeners[0] if alone else self._begin

    def _begin(self, arguments: Arguments) -> Visit | None:
        visits: list[Visit] = []
        place = 0
        while place < len(self._listeners):  # the first may bring in a second
            visit = self._listeners[place](arguments)
            place += 1
            if visit is not None:
                visits.append(visit)
                arguments = visit.arguments
        if not self._heard:
            self._aim(heard=True)
        if len(visits) < 2:
            return visits[0] if visits else None
        return _Visits(visits, arguments)

    def _change(self) -> None:
        function = inspect.unwrap(vars(self._places[0])[self.name])
        code = None
        if isinstance(function, types.FunctionType):
            code = inlay(function, self._gate, self._guarded)
        if code is None:
            self._wrap()
            return
        original, function.__code__ = function.__code__, code

        def undo() -> bool:
            if function.__code__ is not code:
                return False
            function.__code__ = original
            return True

        self._undo.append(undo)

    def _wrap(self) -> None:
        original = vars(self._places[0])[self.name]
        wrapper = wrapped(original, self._gate, self._guarded)
        for place in self._places:
            if vars(place).get(self.name) is original:
                setattr(place, self.name, wrapper)
                self._undo.append(functools.partial(_put_back, place, self.name, wrapper))


class _Visits(Visit):
    """Several visits of one call: what the first began ends last."""

    def __init__(self, visits: list[Visit], arguments: Arguments) -> None:
        super().__init__(arguments)
        self._visits = visits
        instead = next((visit for visit in visits if visit.replaced), None)
        if instead is not None:
            self.replaced, self.result = True, instead.result

    def returns(self, result: object) -> object:
        for visit in reversed(self._visits):
            result = visit.returns(result)
        return result

    def ends(self) -> None:
        for visit in reversed(self._visits):
            visit.ends()


def wrapped(original: Callable[..., object], begin: Begin, guarded: bool) -> Callable[..., object]:
    """A function that does what `inlay` would have the original do."""
    signature = inspect.signature(original)

    @functools.wraps(original)
    @invisible
    def call(*args: object, **kwargs: object) -> Any:
        try:
            bound = signature.bind(*args, **kwargs)
        except TypeError:  # which the original says better
            return original(*args, **kwargs)
        bound.apply_defaults()
        visit = begin(tuple(bound.arguments.values()))
        if visit is None:
            return original(*args, **kwargs)
        if visit.replaced:
            return visit.result
        bound.arguments.update(zip(bound.arguments, visit.arguments, strict=True))
        try:
            return visit.returns(original(*bound.args, **bound.kwargs))
        finally:
            if guarded:
                visit.ends()

    return call


def _put_back(place: object, name: str, wrapper: object) -> bool:
    if vars(place)[name] is not wrapper:
        return False
    setattr(place, name, wrapper.__wrapped__)
    return True


_CLIPPING = (torch.nn.utils, sys.modules["torch.nn.utils.clip_grad"])

BACKWARD = Site("backward", [torch.autograd])
GRAD = Site("grad", [torch.autograd], guarded=False)
CLIP_NORM = Site("clip_grad_norm_", _CLIPPING, guarded=False)
CLIP_WITH_NORM = Site("clip_grads_with_norm_", _CLIPPING, guarded=False)
CLIP_VALUE = Site("clip_grad_value_", _CLIPPING, guarded=False)
SCALE = Site("scale", [GradScaler])
UNSCALE = Site("unscale_", [GradScaler])
SCALER_STEP = Site("step", [GradScaler])


def inside_backward() -> bool:
    """Whether autograd is at work in this thread: a `backward` now is a re-entrant one."""
    return graph_task() != -1


def is_traced(tensor: torch.Tensor) -> bool:
    """Whether a transform such as `torch.func.grad` has wrapped it."""
    return is_wrapped(tensor)


def listed(tensors: Any) -> list[Any]:
    """What `backward` takes as one tensor or several, as a list."""
    if tensors is None:
        return []
    return [tensors] if isinstance(tensors, torch.Tensor) else list(tensors)
