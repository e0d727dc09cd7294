"""Generators and modules: what a replay needs as it was, and leaves as it is.

torch's generators are copied before each call that may draw. Python's and NumPy's cost
ten times as much, and few models draw from them: they are copied only before modules
that were seen to. The same holds for buffers, of which most are constants or running statistics
that a forward pass in training mode does not read, and for other attributes; see `remembered`.
"""

from __future__ import annotations

import collections
import contextlib
import random
import sys
import weakref
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import torch

from steadygrad.torch.internals.private import NORMALISATION
from steadygrad.torch.origin import remembered
from steadygrad.torch.origin.remembered import glance_at

LOOKS = 2
"""Calls of a module that are looked at closely: does it draw, does it change buffers?"""
MOST_BUFFER_BYTES = 4 << 20

Buffer = tuple[weakref.ref[torch.nn.Module], str, torch.Tensor]


class Draws(NamedTuple):
    """Generators, and buffers and attributes that the call changes, before a call."""

    torch: torch.Tensor
    devices: tuple[tuple[Any, torch.Tensor], ...] = ()
    others: Any = None
    buffers: tuple[Buffer, ...] = ()
    attributes: tuple[remembered.Kept, ...] = ()
    seen: Any = None  # versions of those buffers, and attributes, where it is looked at closely


class _Manners:
    """What was seen of a module's calls.

    Attributes:
        looks: calls that were looked at closely.
        draws_others: it draws from Python's or NumPy's generators.
        changing: buffers that it changes.
        remembers: attributes that it changes, and whether each only grows.
    """

    __slots__ = ("changing", "draws_others", "looks", "owner", "remembers")

    def __init__(self, owner: torch.nn.Module) -> None:
        self.owner = weakref.ref(owner)
        self.looks, self.draws_others = 0, False
        self.changing: list[remembered.Spot] = []
        self.remembers: dict[remembered.Spot, bool] = {}


class GeneratorCopies:
    """Copies generators before calls, and as little of the rest as a replay can do with."""

    def __init__(self) -> None:
        self._manners: dict[int, _Manners] = {}

    def now(self) -> Draws:
        """torch's generators."""
        return Draws(_cpu_state(), _device_states())

    def before(self, module: torch.nn.Module) -> Draws:
        """What a call of this module may draw from and change."""
        manners = self._manners.get(id(module))
        if manners is None or manners.owner() is not module:
            self._manners = {k: m for k, m in self._manners.items() if m.owner() is not None}
            manners = self._manners[id(module)] = _Manners(module)
        if manners.looks < LOOKS:
            manners.looks += 1
            copies = _copies(_buffers_of(module))
            seen = [_version(owner, name) for owner, name, _ in copies], glance_at(module)
            return Draws(_cpu_state(), _device_states(), other_states(), copies, seen=seen)
        others = other_states() if manners.draws_others else None
        copies = _copies(manners.changing) if manners.changing else ()
        attributes = remembered.keep(manners.remembers.items()) if manners.remembers else ()
        return Draws(_cpu_state(), _device_states(), others, copies, attributes)

    def after(self, module: torch.nn.Module, draws: Draws) -> Draws:
        """Learn from a call that was looked at closely what later ones need.

        Returns:
            What the call itself needs.
        """
        manners, (versions, glances) = self._manners[id(module)], draws.seen
        if other_states() != draws.others:
            manners.draws_others = True
        for (owner, name, _), version in zip(draws.buffers, versions, strict=True):
            if _version(owner, name) != version and (owner, name) not in manners.changing:
                manners.changing.append((owner, name))
        changed = remembered.changed_since(glances)
        for attribute, grows in changed:
            manners.remembers[attribute.spot] = grows and manners.remembers.get(
                attribute.spot, True
            )
        return draws._replace(attributes=tuple(attribute for attribute, _ in changed), seen=None)


_cpu_state = torch.default_generator.get_state


def _copies(places: Iterable[tuple[weakref.ref[torch.nn.Module], str]]) -> tuple[Buffer, ...]:
    values = ((owner, name, _buffer(owner, name)) for owner, name in places)
    return tuple((o, n, value.detach().clone()) for o, n, value in values if value is not None)


def _buffer(owner: weakref.ref[torch.nn.Module], name: str) -> torch.Tensor | None:
    module = owner()
    return None if module is None else module._buffers.get(name)


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
    return isinstance(module, NORMALISATION)


def _version(owner: weakref.ref[torch.nn.Module], name: str) -> tuple[int, int]:
    value = _buffer(owner, name)
    return (0, 0) if value is None else (id(value), -1 if value.is_inference() else value._version)


def _device_states() -> tuple[tuple[object, torch.Tensor], ...]:
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


def _every_device() -> tuple[tuple[object, torch.Tensor], ...]:
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
    own = [g for module in modules.values() for g in remembered.generators_in(module)]
    states = [(generator, remembered.state_of(generator)) for generator in own]
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
            for container, content in contents:
                _refill(container, content)
        for generator, state in states:
            remembered.set_state(generator, state)
        with torch.no_grad():
            for buffer, value in values:
                buffer.copy_(value)


def _copy(module: torch.nn.Module, name: str, value: torch.Tensor) -> torch.Tensor:
    if module.training and name in _STATISTICS and _normalises(module):
        return torch.ones_like(value)  # not read, and broken by now where the batch was
    return value.detach().clone()


def _contents(module: torch.nn.Module) -> list[tuple[object, object]]:
    kinds = (list, dict, set, collections.OrderedDict, collections.deque)
    containers = [value for value in vars(module).values() if type(value) in kinds]
    return [(container, container.copy()) for container in containers]


def _refill(container: Any, content: Any) -> None:
    if isinstance(container, (list, collections.deque)):
        if len(container) != len(content) or any(
            a is not b for a, b in zip(container, content, strict=True)
        ):
            container.clear()
            container.extend(content)
    elif container != content if isinstance(container, set) else _differ(container, content):
        container.clear()
        container.update(content)


def _differ(table: dict[object, object], other: dict[object, object]) -> bool:
    return list(table) != list(other) or any(table[key] is not other[key] for key in other)


def set_modules(draws: Draws) -> None:
    """Put buffers and attributes that the call changes where they were; see `modules_kept`."""
    for attribute in draws.attributes:
        attribute.put_back()
    for owner, name, value in draws.buffers:
        module = owner()
        if module is not None:
            module._buffers[name] = value.clone()
