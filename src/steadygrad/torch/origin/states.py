"""Generators and modules: what a replay needs as it was, and leaves as it is.

torch's generators are copied before each call that may draw. Python's and NumPy's cost
ten times as much, and few models draw from them: they are copied only before modules
that were seen to. The same holds for buffers: most are constants or running statistics,
which a forward pass in training mode does not read.
"""

from __future__ import annotations

import collections
import contextlib
import random
import sys
import weakref
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch

LOOKS = 2
"""Calls of a module that are looked at closely: does it draw, does it change buffers?"""
MOST_BUFFER_BYTES = 4 << 20

Buffer = tuple[weakref.ref[torch.nn.Module], str, torch.Tensor]


class Draws(NamedTuple):
    """Generators, and buffers that the call changes, before a call."""

    torch: torch.Tensor
    devices: tuple[tuple[Any, torch.Tensor], ...] = ()
    others: Any = None
    buffers: tuple[Buffer, ...] = ()
    versions: Any = None


class Generators:
    """Copies generators before calls, and as little of the rest as a replay can do with."""

    def __init__(self) -> None:
        self._looks: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()
        self._draws_others: weakref.WeakSet[Any] = weakref.WeakSet()
        self._changing: weakref.WeakKeyDictionary[Any, list[Any]] = weakref.WeakKeyDictionary()

    def now(self) -> Draws:
        """torch's generators."""
        return Draws(torch.get_rng_state(), _device_states())

    def before(self, module: torch.nn.Module) -> Draws:
        """What a call of this module may draw from and change."""
        looks = self._looks.get(module, 0)
        close = looks < LOOKS
        if close:
            self._looks[module] = looks + 1
        others = other_states() if close or module in self._draws_others else None
        kept: list[Buffer] = []
        for owner, name in self._changing.get(module, ()) if not close else _buffers_of(module):
            held = owner()
            value = None if held is None else held._buffers.get(name)
            if value is not None:
                kept.append((owner, name, value.detach().clone()))
        versions = [_version(owner, name) for owner, name, _ in kept] if close else None
        return Draws(torch.get_rng_state(), _device_states(), others, tuple(kept), versions)

    def after(self, module: torch.nn.Module, draws: Draws) -> None:
        """Learn from the first calls what the later ones need."""
        if draws.versions is None:
            return
        if other_states() != draws.others:
            self._draws_others.add(module)
        changed = [
            (owner, name)
            for (owner, name, _), version in zip(draws.buffers, draws.versions, strict=True)
            if _version(owner, name) != version
        ]
        known = self._changing.setdefault(module, [])
        known += [pair for pair in changed if pair not in known]


def _buffers_of(module: torch.nn.Module) -> Iterator[tuple[weakref.ref[torch.nn.Module], str]]:
    """Buffers that a forward pass in training mode may read."""
    room = MOST_BUFFER_BYTES
    for owner in module.modules():
        for name, value in owner._buffers.items():
            if value is None or (owner.training and name in _STATISTICS and _normalises(owner)):
                continue
            room -= value.nbytes
            if room >= 0:
                yield weakref.ref(owner), name


_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


def _normalises(module: torch.nn.Module) -> bool:
    return isinstance(module, torch.nn.modules.batchnorm._NormBase)


def _version(owner: weakref.ref[torch.nn.Module], name: str) -> tuple[int, int]:
    module = owner()
    value = None if module is None else module._buffers.get(name)
    return (0, 0) if value is None else (id(value), -1 if value.is_inference() else value._version)


def _device_states() -> tuple[tuple[Any, torch.Tensor], ...]:
    if not _cuda_runs():
        return ()
    generator = torch.cuda.default_generators[torch.cuda.current_device()]
    return ((generator, generator.get_state()),)


def other_states() -> Any:
    """Python's and NumPy's global generators, comparable with ``==``."""
    state = random.getstate()
    numpy = sys.modules.get("numpy")
    if numpy is None:
        return state, None
    name, keys, position, has_gauss, gauss = numpy.random.get_state()
    return state, (name, keys.tobytes(), position, has_gauss, gauss)


def set_others(states: Any) -> None:
    """Put Python's and NumPy's generators where `other_states` found them."""
    python, numpys = states
    random.setstate(python)
    if numpys is not None:
        numpy: Any = sys.modules["numpy"]
        keys = numpy.frombuffer(numpys[1], dtype=numpy.uint32)
        numpy.random.set_state((numpys[0], keys, *numpys[2:]))


def set_draws(draws: Draws) -> None:
    """Put the generators where they were before a call."""
    torch.set_rng_state(draws.torch)
    for generator, state in draws.devices:
        generator.set_state(state)
    if draws.others is not None:
        set_others(draws.others)


@contextlib.contextmanager
def generators_kept() -> Iterator[None]:
    """Leave every generator as it was."""
    draws = Draws(torch.get_rng_state(), _every_device(), other_states())
    try:
        yield
    finally:
        set_draws(draws)


def _cuda_runs() -> bool:
    return bool(torch.cuda.is_initialized())  # type: ignore[no-untyped-call]


def _every_device() -> tuple[tuple[Any, torch.Tensor], ...]:
    if not _cuda_runs():
        return ()
    return tuple((g, g.get_state()) for g in torch.cuda.default_generators)


@contextlib.contextmanager
def modules_kept(roots: list[torch.nn.Module]) -> Iterator[None]:
    """Give modules copies of their buffers for a while; then everything is as it was.

    Attributes that a forward pass sets, and lists and dicts that it adds to, are put back too.
    """
    modules = {id(m): m for root in roots for m in root.modules()}
    scripted = [m for m in modules.values() if isinstance(m, torch.jit.ScriptModule)]
    for one in scripted:  # whose attributes do not live in Python
        del modules[id(one)]
    values = [(b, b.detach().clone()) for m in scripted for b in m.buffers(recurse=False)]
    saved = [(m, dict(vars(m)), _contents(m)) for m in modules.values()]
    try:
        for module in modules.values():
            vars(module)["_buffers"] = {
                name: None if value is None else _copy(module, name, value)
                for name, value in module._buffers.items()
            }
        yield
    finally:
        for module, attributes, contents in saved:
            vars(module).clear()
            vars(module).update(attributes)
            for container, held in contents:
                _refill(container, held)
        with torch.no_grad():
            for buffer, value in values:
                buffer.copy_(value)


def _copy(module: torch.nn.Module, name: str, value: torch.Tensor) -> torch.Tensor:
    if module.training and name in _STATISTICS and _normalises(module):
        return torch.ones_like(value)  # not read, and broken by now where the batch was
    return value.detach().clone()


def _contents(module: torch.nn.Module) -> list[tuple[Any, Any]]:
    kinds = (list, dict, set, collections.OrderedDict, collections.deque)
    containers = [value for value in vars(module).values() if type(value) in kinds]
    return [(container, container.copy()) for container in containers]


def _refill(container: Any, held: Any) -> None:
    if isinstance(container, (list, collections.deque)):
        if len(container) != len(held) or any(
            a is not b for a, b in zip(container, held, strict=True)
        ):
            container.clear()
            container.extend(held)
    elif container != held if isinstance(container, set) else _differ(container, held):
        container.clear()
        container.update(held)


def _differ(table: dict[Any, Any], other: dict[Any, Any]) -> bool:
    return list(table) != list(other) or any(table[key] is not other[key] for key in other)


def set_buffers(draws: Draws) -> None:
    """Put buffers that the call changes where they were before it; on copies, see above."""
    for owner, name, value in draws.buffers:
        module = owner()
        if module is not None:
            module._buffers[name] = value.clone()
