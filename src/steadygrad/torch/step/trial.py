"""Finding out, when attaching, how an optimizer that is not torch's can be skipped.

Everything is tried on a copy over copies of a few parameters: the optimizer attached to, its
weights and its state take no part, and random numbers are drawn from states that are put back.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import gc
import random
import sys
import types
from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

from steadygrad.errors import AttachError
from steadygrad.torch.internals.trying import trying
from steadygrad.torch.internals.warn import without_warnings
from steadygrad.torch.step.copies import StepOfAnother
from steadygrad.torch.step.inner import HOOKS, Rebuilding, inner_optimizers
from steadygrad.torch.step.skipping import (
    UNKNOWN,
    Fill,
    PutBack,
    Skipping,
    SkipWay,
    by_putting_back,
    by_shadow,
    by_taking_gradients,
    raw_step,
    stock_skipping,
    unit_gradients,
    with_small_things_put_back,
    zero_gradients,
)
from steadygrad.torch.step.snapshot import Snapshot

FEW = 2
"""Parameters of each group that take part first."""

MOST_LOOKED_AT = 50_000
"""Objects among which a way back to the optimizer is looked for; of more, nothing is known."""

STEPS = 3
"""How often a step is skipped in a trial, with one that is not skipped after each."""


def skipping_of(optimizer: torch.optim.Optimizer) -> Skipping:
    """How an optimizer is skipped whole; the optimizer is neither stepped nor changed.

    Args:
        optimizer: of any class, before a step.

    Raises:
        AttachError: it cannot be; says why, and what to type.
    """
    if any(each.__name__ == "PostLocalSGDOptimizer" for each in type(optimizer).__mro__):
        raise AttachError(_refusal(optimizer, "its step() averages the weights of all ranks, too"))
    stock = stock_skipping(optimizer)
    if stock is not None:
        return stock
    with _undisturbed(optimizer):
        try:
            if _leads_back(_copy(optimizer, FEW), optimizer):
                return UNKNOWN
            # an optimizer may keep lists of its own beside its parameters: then all take part
            skipping = _Trial(optimizer, FEW).result() or _Trial(optimizer, None).result()
        except AttachError:
            raise
        except Exception:  # it cannot be copied, so nothing is known of it
            return UNKNOWN
    if skipping is None:
        raise AttachError(_refusal(optimizer, "its step() changes what cannot be put back"))
    return skipping


FILLS: tuple[Fill, ...] = (zero_gradients, unit_gradients)


class _Trial:
    """Steps of copies of one optimizer.

    Args:
        optimizer: is only read.
        most: parameters of each group that take part, the smallest; None for all.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, most: int | None) -> None:
        self._optimizer = optimizer
        self._most = most

    def result(self) -> Skipping | None:
        """What the trial has shown; None where nothing serves.

        Raises:
            AttachError: it steps another optimizer, which no copy of it can replace.
        """
        if not self._steps_alone():
            # it steps with a closure, with arguments of its own, or not on copies at all
            return self._skipped_by(by_putting_back(zero_gradients))
        cheap = (with_small_things_put_back(way) for way in (by_shadow, by_taking_gradients))
        for way in (*cheap, *map(by_putting_back, FILLS)):
            if self._skips(way):
                return self._skipped_by(way)
        return None

    def _skipped_by(self, way: SkipWay) -> Skipping:
        read_last = self._reads_gradients_last()
        fill = zero_gradients if read_last else next(filter(self._goes_on, FILLS), zero_gradients)
        return Skipping(way, read_last, fill, self._ignores_closure())

    def _steps_alone(self) -> bool:
        """Whether a copy's step without a closure does something: what is not seen is no proof."""
        second = _copy(self._optimizer, self._most)
        snapshot = Snapshot(second)
        _give_gradients(second)
        return self._runs(lambda: raw_step(second)) and not snapshot.holds()

    def _skips(self, way: SkipWay) -> bool:
        """Whether nothing comes of a skipped step, neither of a first one nor of a later one."""
        second = _copy(self._optimizer, self._most)
        for _ in range(STEPS):
            _give_gradients(second)
            snapshot = Snapshot(second)
            if not self._runs(lambda: _skip(second, way)) or not snapshot.holds():
                return False
            self._runs(lambda: raw_step(second))
        return True

    def _reads_gradients_last(self) -> bool:
        second = _copy(self._optimizer, self._most)
        for _ in range(STEPS):
            _give_gradients(second)
            snapshot = Snapshot(second)
            untouched: list[bool] = []
            put_back: list[PutBack] = []

            def broken(
                snapshot: Snapshot = snapshot,
                untouched: list[bool] = untouched,
                put_back: list[PutBack] = put_back,
            ) -> torch.Tensor:
                untouched.append(snapshot.holds())
                put_back.append(with_small_things_put_back(by_taking_gradients)(second)[1])
                return torch.tensor(1.0)

            if not self._runs(functools.partial(raw_step, second, broken)):
                return False
            for each in put_back:
                each()
            if untouched != [True] or not snapshot.holds():
                return False
            self._runs(lambda: raw_step(second, lambda: _give_gradients(second)))
        return True

    def _ignores_closure(self) -> bool:
        """Whether it steps each time without an evaluation of the closure that it is given."""
        second = _copy(self._optimizer, self._most)
        evaluations: list[torch.Tensor] = []
        for _ in range(STEPS):
            _give_gradients(second)
            snapshot = Snapshot(second)

            def counted() -> torch.Tensor:
                evaluations.append(_give_gradients(second))
                return evaluations[-1]

            stepped = self._runs(functools.partial(raw_step, second, counted))
            if not stepped or evaluations or snapshot.holds():
                return False
        return True

    def _goes_on(self, fill: Fill) -> bool:
        """Whether it comes to an end on such gradients after an evaluation."""
        second = _copy(self._optimizer, self._most)
        for _ in range(STEPS):
            _give_gradients(second)
            snapshot = Snapshot(second)

            def broken() -> torch.Tensor:
                fill(second)
                return torch.tensor(1.0)

            if not self._runs(functools.partial(raw_step, second, broken)):
                return False
            snapshot.restore()
            self._runs(lambda: raw_step(second, lambda: _give_gradients(second)))
        return True

    def _runs(self, step: Callable[[], object]) -> bool:
        try:
            step()
        except StepOfAnother:
            reason = "its step() calls an optimizer that is not among its attributes"
            raise AttachError(_refusal(self._optimizer, reason)) from None
        except Exception:  # whatever a foreign step raises, another way may do
            return False
        return True


def _skip(optimizer: torch.optim.Optimizer, way: SkipWay) -> None:
    stand_in, put_back = way(optimizer)
    try:
        raw_step(stand_in)
    finally:
        put_back()


def _copy(optimizer: torch.optim.Optimizer, most: int | None) -> torch.optim.Optimizer:
    """The optimizer and its inner ones over copies of their parameters, with empty state."""
    copies = {id(p): _clone(p) for p in _smallest_parameters(optimizer, most)}
    groups_built: dict[int, dict[str, object]] = {}
    states: dict[int, dict[object, object]] = {}

    def groups(originals: list[dict[str, object]]) -> list[dict[str, object]]:
        return [groups_built.setdefault(id(group), group_of(group)) for group in originals]

    def group_of(group: dict[str, Any]) -> dict[str, object]:
        params = [copies[id(p)] for p in group["params"] if id(p) in copies]
        return {**group, "params": params, **_rate(group)}

    def state(original: dict[object, object]) -> dict[Any, Any]:
        return states.setdefault(id(original), defaultdict(dict))

    def tensor(original: torch.Tensor) -> torch.Tensor:
        return copies[id(original)] if id(original) in copies else original.detach().clone()

    return Rebuilding(tensor, groups, state, raw_step).optimizer(optimizer)


def _leads_back(second: torch.optim.Optimizer, first: torch.optim.Optimizer) -> bool:
    """Whether a copy holds, however deep, what it is a copy of: then its step may write to that.

    A model, a function over one, or a tuple of the weights is not copied with an optimizer.
    """
    both = (first, *inner_optimizers(first))
    ours: set[object] = {id(each) for each in both}
    weights = [p for each in both for group in each.param_groups for p in group["params"]]
    ours |= set(map(id, weights)) | set(map(_memory, weights))
    ahead = deque(value for key, value in vars(second).items() if key not in HOOKS)
    seen: set[int] = set()
    while ahead:
        value = ahead.popleft()
        if id(value) in ours or len(seen) > MOST_LOOKED_AT:
            return True
        if isinstance(value, torch.Tensor) and _memory(value) in ours:
            return True
        if id(value) not in seen:
            seen.add(id(value))
            ahead.extend(_parts(value))
    return False


def _memory(tensor: torch.Tensor) -> object:
    """What a tensor has in common with its views; itself where that is not told."""
    try:
        return "at", tensor.untyped_storage().data_ptr() or id(tensor)
    except (RuntimeError, NotImplementedError):  # it has none, as a sparse one
        return "at", id(tensor)


def _parts(value: object) -> list[Any]:
    """What an object holds, without what all of its kind or all of its module hold."""
    if isinstance(value, types.FunctionType):
        return [value.__closure__, value.__defaults__, value.__kwdefaults__, vars(value)]
    if isinstance(value, torch.optim.Optimizer):
        return [each for key, each in vars(value).items() if key not in HOOKS]
    if isinstance(value, (torch.Tensor, type, types.ModuleType, types.CodeType, types.FrameType)):
        return []
    family = type(value).__module__.partition(".")[0]
    if family in sys.stdlib_module_names and family not in _MERE_CONTAINERS:
        return []  # a logger or a lock leads all over the process
    return gc.get_referents(value)


_MERE_CONTAINERS = {"builtins", "collections", "functools", "types"}


def _rate(group: dict[str, object]) -> dict[str, object]:
    """A learning rate at which a step can be seen: a warm-up may begin at 0."""
    return {"lr": 0.1} if isinstance(group.get("lr"), (int, float)) else {}


def _smallest_parameters(optimizer: torch.optim.Optimizer, most: int | None) -> list[torch.Tensor]:
    few: list[torch.Tensor] = []
    for each in (optimizer, *inner_optimizers(optimizer)):
        for group in each.param_groups:
            few += sorted(group["params"], key=torch.numel)[:most]
    return few


def _clone(parameter: torch.Tensor) -> torch.Tensor:
    return torch.nn.Parameter(parameter.detach().clone(), parameter.requires_grad)


def _give_gradients(optimizer: torch.optim.Optimizer) -> torch.Tensor:
    """Gradients as of a sine of the weights; returns what a closure would."""
    for each in (optimizer, *inner_optimizers(optimizer)):
        for group in each.param_groups:
            for parameter in group["params"]:
                parameter.grad = torch.cos(3.0 * parameter.detach())
    return torch.tensor(1.0)


@contextlib.contextmanager
def _undisturbed(optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Gradients are out of the way, random states are put back, and only copies take a step."""
    give_back = by_taking_gradients(optimizer)[1]
    classes = [each for each in type(optimizer).__mro__ if not _is_of_a_library(each)]
    shared = [(each, _of_class(each)) for each in classes]
    states = random.getstate(), np.random.get_state()
    devices = range(torch.cuda.device_count()) if torch.cuda.is_available() else ()
    try:
        with trying(), without_warnings(), torch.random.fork_rng(devices):
            yield
    finally:
        give_back()
        for each, values in shared:
            _put_back_in(each, values)
        random.setstate(states[0])
        np.random.set_state(states[1])


def _is_of_a_library(cls: type) -> bool:
    return cls is object or cls.__module__.partition(".")[0] == "torch"


def _of_class(cls: type) -> dict[str, tuple[Any, Any]]:
    """What all optimizers of a class share and a step may write: its numbers and containers."""
    shared = {key: value for key, value in vars(cls).items() if not key.startswith("__")}
    kinds = (int, float, str, type(None), list, dict, set, deque)
    return {k: (v, copy.copy(v)) for k, v in shared.items() if isinstance(v, kinds)}


def _put_back_in(cls: type, values: dict[str, tuple[Any, Any]]) -> None:
    for key, (value, content) in values.items():
        if vars(cls).get(key) is not value:
            setattr(cls, key, value)
        if isinstance(value, (list, dict, set, deque)):
            value.clear()
            add = value.extend if isinstance(value, (list, deque)) else value.update
            add(content)


def _refusal(optimizer: torch.optim.Optimizer, reason: str) -> str:
    return (
        f"{type(optimizer).__qualname__} cannot be skipped whole: {reason}. Type "
        "steadygrad.torch.attach(..., on_nonfinite='raise'), or 'zero', or 'propagate'"
    )
