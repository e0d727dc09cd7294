"""What an optimizer's `state_dict` leaves out: its inner optimizers, and what attributes hold.

Wrappers and hybrids keep what their steps write where no `state_dict` looks: in an optimizer of
their own, in weights of that one, in lists of slow weights, in counters.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from steadygrad.torch.gradients.parameters import parameters_of
from steadygrad.torch.recovery.shards import laid_out_alike
from steadygrad.torch.step.inner import (
    HOOKS,
    inner_optimizers,
    is_helper,
    set_source_state,
    source_state,
)
from steadygrad.torch.step.snapshot import HELPERS_WITHIN, MOST_IN_HELPERS

_ELSEWHERE = HOOKS | {"state", "param_groups", "defaults", "grad_scale", "found_inf"}
"""Attributes that are saved in other ways, or belong to a single step."""
_PLAIN = (bool, int, float, complex, type(None))
_ROWS = (list, tuple, deque)
_KNOWN = (*_PLAIN, *_ROWS, dict, torch.Tensor, np.ndarray)
_AS_IT_IS = ("as it is",)
"""Stands for what a step does not write, or what no file holds."""


def saved_beside(optimizer: torch.optim.Optimizer) -> list[dict[str, object]]:
    """What is to be saved beside an optimizer's own `state_dict`, of it and of its inner ones.

    Tensors are themselves in it, and no copies.
    """
    every = [optimizer, *inner_optimizers(optimizer)]
    attributes = _Attributes(every)
    return [
        {
            "class": type(each).__name__,
            "state": None if each is optimizer else _state_of(each),
            "weights": weights,
            "attributes": attributes.of(each),
        }
        for each, weights in zip(every, _own_weights(every), strict=True)
    ]


def put_back_beside(
    optimizer: torch.optim.Optimizer, saved: Sequence[Mapping[str, Any]]
) -> list[str]:
    """Put back what `saved_beside` gave; what of it could not be.

    Args:
        optimizer: made as it was then.
        saved: what that gave.

    Returns:
        Names of what stays as it is, because the optimizer has no place for it now.
    """
    every = [optimizer, *inner_optimizers(optimizer)]
    if [type(each).__name__ for each in every] != [part["class"] for part in saved]:
        return ["the optimizers inside of it"] if saved else []
    attributes, missing = _Attributes(every), []
    for each, weights, part in zip(every, _own_weights(every), saved, strict=True):
        name = type(each).__name__
        alike = len(weights) == len(part["weights"])
        if alike and all(map(laid_out_alike, weights, part["weights"])):
            for weight, old in zip(weights, part["weights"], strict=True):
                weight.detach().copy_(old)
        else:
            missing.append(f"weights of the {name} inside")
        if part["state"] is not None:
            load_in_place(every, each, part["state"])
        elif each is not optimizer:
            missing.append(f"the state of the {name} inside")
        if not attributes.put_back(each, part["attributes"]):
            missing.append(f"attributes of the {name}")
    return missing


def load_in_place(
    every: Sequence[torch.optim.Optimizer],
    optimizer: torch.optim.Optimizer,
    state: dict[str, Any],
) -> None:
    """`load_state_dict`, after which optimizers that shared groups or state still share them.

    Args:
        every: the optimizer, and those inside of it and around it.
        optimizer: one of them, which is loaded.
        state: what its `state_dict` gave.
    """
    names = ("state", "param_groups")
    before = [{name: vars(each).get(name) for name in names} for each in every]
    optimizer.load_state_dict(state)
    for each, old in zip(every, before, strict=True):
        for name in names:
            loaded = vars(each).get(name)
            if loaded is not None and old[name] is not None and loaded is not old[name]:
                _refill(old[name], loaded)
                vars(each)[name] = old[name]


def _refill(old: Any, loaded: Any) -> None:
    """Give a container the content of another one; so do the dicts in a list, in order."""
    if isinstance(old, list):
        for group, other in zip(old, loaded, strict=True):
            _refill(group, other)
    elif old is not loaded:
        content = dict(loaded)
        old.clear()
        old.update(content)


def _state_of(optimizer: torch.optim.Optimizer) -> dict[str, Any] | None:
    try:
        return optimizer.state_dict()
    except Exception:  # the one around it may be able to say its own
        return None


def _own_weights(every: Sequence[torch.optim.Optimizer]) -> list[list[torch.Tensor]]:
    """Each one's weights that none before it has; those of the first are saved by themselves."""
    seen = set(map(id, parameters_of(every[0])))
    each_ones: list[list[torch.Tensor]] = [[]]
    for optimizer in every[1:]:
        own = [p for p in parameters_of(optimizer) if id(p) not in seen]
        seen.update(map(id, own))
        each_ones.append(own)
    return each_ones


class _Attributes:
    """Attributes of optimizers as plain containers that any file holds, and back again.

    Args:
        every: an optimizer and those inside of it.
    """

    def __init__(self, every: Sequence[torch.optim.Optimizer]) -> None:
        self._weights = [p for each in every for p in parameters_of(each)]
        self._numbers = {id(p): number for number, p in enumerate(self._weights)}
        containers = [vars(each).get(name) for each in every for name in ("state", "param_groups")]
        groups = [group for each in every for group in each.param_groups]
        self._not_mine = {id(each) for each in (*every, *containers, *groups, *self._weights)}

    def of(self, optimizer: torch.optim.Optimizer) -> dict[str, object]:
        """The attributes of one."""
        return {key: self._packed(value, 0, set()) for key, value in _written(optimizer).items()}

    def put_back(self, optimizer: torch.optim.Optimizer, saved: Mapping[str, object]) -> bool:
        """Put them all back, or none; whether there is a place for each."""
        here = _written(optimizer)
        if not all(self._fits(here.get(key), value) for key, value in saved.items()):
            return False
        with torch.no_grad():
            for key, value in saved.items():
                if not _is_left(value):
                    vars(optimizer)[key] = self._unpacked(here.get(key), value)
        return True

    def _fits(self, here: Any, saved: object) -> bool:
        """Whether all that is not saved itself is there."""
        if not isinstance(saved, tuple):
            return True
        kind, content = saved[0], saved[-1]
        if kind == "row":
            old = list(here) if isinstance(here, _ROWS) else []
            old += [None] * (len(content) - len(old))
            return all(map(self._fits, old, content))
        if kind == "dict":
            entries = here if isinstance(here, dict) else {}
            places = [key[1] if isinstance(key, tuple) else 0 for key, _ in content]
            return max(places, default=0) < len(self._weights) and all(
                self._fits(entries.get(self._key_here(key)), value) for key, value in content
            )
        if kind == "object":
            return is_helper(here) and all(
                self._fits(vars(here).get(key), value) for key, value in content.items()
            )
        return here is not None or kind == "array"

    def _packed(self, value: Any, depth: int, around: set[int]) -> object:
        """One value.

        Args:
            value: it.
            depth: how many helpers it is in.
            around: numbers of the containers that it is in.
        """
        if isinstance(value, _PLAIN):
            return value
        if id(value) in self._not_mine or id(value) in around:
            return _AS_IT_IS
        if isinstance(value, (torch.Tensor, np.ndarray)):
            return self._packed_array(value, depth)
        if isinstance(value, (torch.Generator, random.Random)):
            return "source", source_state(value)
        around = {*around, id(value)}
        if isinstance(value, _ROWS):
            return "row", [self._packed(each, depth, around) for each in value]
        if isinstance(value, dict):
            if not all(isinstance(key, (str, int)) or id(key) in self._numbers for key in value):
                return _AS_IT_IS
            entries = [(self._key(k), self._packed(v, depth, around)) for k, v in value.items()]
            return "dict", entries
        if depth <= HELPERS_WITHIN and is_helper(value):
            parts = vars(value).items()
            return "object", {k: self._packed(v, depth + 1, around) for k, v in parts}
        return _AS_IT_IS

    def _packed_array(self, value: Any, depth: int) -> object:
        if isinstance(value, torch.Tensor):
            return _AS_IT_IS if depth and value.numel() > MOST_IN_HELPERS else value
        if value.dtype.kind not in "biufc" or (depth and value.size > MOST_IN_HELPERS):
            return _AS_IT_IS
        return "array", torch.from_numpy(value)

    def _key(self, key: object) -> object:
        return ("weight", self._numbers[id(key)]) if id(key) in self._numbers else key

    def _key_here(self, key: Any) -> Any:
        return self._weights[key[1]] if isinstance(key, tuple) else key

    def _unpacked(self, here: Any, saved: Any) -> Any:
        """What goes in the place of a value: itself, with another content, where that can be."""
        if _is_left(saved):
            return here
        if isinstance(saved, torch.Tensor):
            if isinstance(here, torch.Tensor) and laid_out_alike(here, saved):
                here.detach().copy_(saved)
                return here
            return saved.to(self._weights[0].device) if self._weights else saved
        if not isinstance(saved, tuple):
            return saved if here is None or isinstance(here, _KNOWN) else here
        kind, *rest = saved
        if kind == "row":
            return self._row(here, rest[0])
        if kind == "dict":
            return self._dict(here, rest[0])
        if kind == "object":
            for key, value in rest[0].items():
                if not _is_left(value):
                    vars(here)[key] = self._unpacked(vars(here).get(key), value)
        elif kind == "array":
            array = rest[0].numpy()
            if not isinstance(here, np.ndarray) or here.shape != array.shape:
                return array
            here[...] = array
        elif kind == "source":
            set_source_state(here, rest[0])
        return here

    def _row(self, here: Any, saved: Sequence[object]) -> Any:
        old = list(here) if isinstance(here, _ROWS) else []
        old += [None] * (len(saved) - len(old))
        row = [self._unpacked(*each) for each in zip(old, saved, strict=False)]
        if isinstance(here, tuple):
            return here if all(a is b for a, b in zip(row, here, strict=False)) else tuple(row)
        if not isinstance(here, (list, deque)):
            return row
        here.clear()
        here.extend(row)
        return here

    def _dict(self, here: Any, saved: Sequence[tuple[Any, object]]) -> Any:
        old = dict(here) if isinstance(here, dict) else {}
        pairs = [(self._key_here(key), value) for key, value in saved]
        entries = {key: self._unpacked(old.get(key), value) for key, value in pairs}
        if not isinstance(here, dict):
            return entries
        here.clear()
        here.update(entries)
        return here


def _is_left(saved: object) -> bool:
    return isinstance(saved, tuple) and saved == _AS_IT_IS


def _written(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    return {key: value for key, value in vars(optimizer).items() if key not in _ELSEWHERE}
