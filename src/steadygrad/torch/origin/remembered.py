"""What modules remember from call to call in attributes of their own: counters, caches, generators.

The first calls of a module are looked at closely; later ones keep, before they run, only the
attributes that those had changed. Most modules change none.
"""

from __future__ import annotations

import collections
import random
import sys
import weakref
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch

MOST_ITEMS = 256
"""Of a list or dict that is copied; one that only grows is kept by its length."""

MOST_NUMBERS = 1 << 16
"""Of a tensor that is copied."""

_OWN = frozenset(vars(torch.nn.Module()))
_CONTAINERS = (list, dict, set, collections.OrderedDict, collections.deque)

Spot = tuple[weakref.ref[torch.nn.Module], str]
"""A module and the name of its attribute."""


class Kept(NamedTuple):
    """An attribute before a call.

    Attributes:
        spot: where it is.
        value: what it was: an object, a length, or a generator's state.
        how: ``object``, ``length`` or ``state``.
    """

    spot: Spot
    value: Any
    how: str = "object"

    def put_back(self) -> None:
        """Restore the attribute in its module, as a copy."""
        owner = self.spot[0]()
        if owner is None:
            return
        now = vars(owner).get(self.spot[1])
        if self.how == "state":
            set_state(now, self.value)
        elif self.how == "length":
            vars(owner)[self.spot[1]] = now[: self.value] if isinstance(now, list) else now
        else:
            vars(owner)[self.spot[1]] = _copied(self.value)


class Glance(NamedTuple):
    """An attribute before a call that is watched closely: a fingerprint, and how to restore it."""

    print: Any
    attribute: Kept


def glance_at(module: torch.nn.Module) -> dict[tuple[int, str], Glance]:
    """Every attribute of a module and of those inside it that it made itself."""
    glances = {}
    for owner in module.modules():
        if isinstance(owner, torch.jit.ScriptModule):
            continue
        reference = weakref.ref(owner)
        for name, value in vars(owner).items():
            if name not in _OWN:
                attribute = _keep((reference, name), value, grows=False)
                glances[id(owner), name] = Glance(_print_of(value), attribute)
    return glances


def changed_since(glances: dict[tuple[int, str], Glance]) -> list[tuple[Kept, bool]]:
    """The attributes that a call has changed, and whether each only grew."""
    changed = []
    for glance in glances.values():
        owner = glance.attribute.spot[0]()
        now = None if owner is None else vars(owner).get(glance.attribute.spot[1])
        before, after = glance.print, _print_of(now)
        if before != after:
            longer = type(now) is list and type(before) is tuple and before[0] == after[0]
            grows = longer and after[2][: before[1]] == before[2][: before[1]]
            changed.append((glance.attribute, grows))
    return changed


def keep(spots: Iterable[tuple[Spot, bool]]) -> tuple[Kept, ...]:
    """Keep attributes, each with whether it only grows."""
    alive = ((spot, grows, spot[0]()) for spot, grows in spots)
    return tuple(
        _keep(spot, vars(owner).get(spot[1]), grows) for spot, grows, owner in alive if owner
    )


def _keep(spot: Spot, value: Any, grows: bool) -> Kept:
    if grows:
        return Kept(spot, len(value), "length")
    if is_generator(value):
        return Kept(spot, state_of(value), "state")
    return Kept(spot, _copied(value))


def _copied(value: Any) -> object:
    """A copy of what a call may change in place; of a tensor without its graph."""
    if type(value) in _CONTAINERS:
        return value.copy() if len(value) <= MOST_ITEMS else value
    if type(value) is torch.Tensor:
        return value.detach().clone() if value.numel() <= MOST_NUMBERS else value.detach()
    return value


def _print_of(value: Any) -> Any:
    """A fingerprint of an attribute's value: it differs once the value is changed."""
    if type(value) in _CONTAINERS:
        items = [*value, *value.values()] if isinstance(value, dict) else list(value)
        return id(value), len(value), list(map(id, items[: 2 * MOST_ITEMS]))
    if isinstance(value, torch.Tensor):
        return id(value), 0 if value.is_inference() else value._version
    if type(value) in (int, float, str, bool):
        return value
    return _printed_state(value) if is_generator(value) else id(value)


def _printed_state(generator: object) -> object:
    state = state_of(generator)
    return state.numpy().tobytes() if isinstance(state, torch.Tensor) else repr(state)


def is_generator(value: object) -> bool:
    """Whether something is a random generator of torch, NumPy or Python."""
    if type(value) in (torch.Generator, random.Random):  # SystemRandom has no state to keep
        return True
    numpy = sys.modules.get("numpy")
    return numpy is not None and isinstance(
        value, (numpy.random.Generator, numpy.random.RandomState)
    )


def state_of(generator: Any) -> object:
    """Where a generator stands."""
    if isinstance(generator, random.Random):
        return generator.getstate()
    inner = getattr(generator, "bit_generator", None)
    return generator.get_state() if inner is None else inner.state


def set_state(generator: Any, state: Any) -> None:
    """Put a generator where `state_of` found it."""
    if isinstance(generator, random.Random):
        generator.setstate(state)
    elif hasattr(generator, "bit_generator"):
        generator.bit_generator.state = state
    elif generator is not None:
        generator.set_state(state)


def generators_in(module: torch.nn.Module) -> list[object]:
    """The generators among a module's own attributes."""
    return [value for value in vars(module).values() if is_generator(value)]
