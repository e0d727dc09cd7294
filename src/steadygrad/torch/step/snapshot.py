"""Copies of everything that a step may write, to compare with and to go back to."""

from __future__ import annotations

from collections import ChainMap, deque
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch

from steadygrad.torch.gradients.pieces import local
from steadygrad.torch.step.inner import (
    HOOKS,
    SOURCES_OF_NUMBERS,
    inner_optimizers,
    is_helper,
    set_source_state,
    source_state,
)

HELPERS_WITHIN = 2
"""How deep in an optimizer's attributes its helpers are looked for: in a group, in a list there."""

DEEPEST_IN_STATE = 6
"""The same in the state: in a block of a parameter's, in a list there, in another object."""

MOST_IN_HELPERS = 4096
"""Elements of what a helper holds; more than that is data, which no step writes."""

_PLAIN = (int, float, complex, bool, str, bytes, type(None))


class _Saved(NamedTuple):
    """One value as it was.

    Attributes:
        original: the object itself, which is written back in place.
        content: copies of what it held.
    """

    original: Any
    content: Any


class Snapshot:
    """Weights, state, hyper-parameters and other attributes of an optimizer and its inner ones.

    Args:
        optimizer: whose step may follow.
        largest: tensors of more elements than this are taken to stay as they are; None saves all.
        copy: makes the copy of a tensor; a clone where it is, unless told otherwise.

    Example:
        >>> weight = torch.nn.Parameter(torch.zeros(2))
        >>> optimizer = torch.optim.SGD([weight], lr=1.0, momentum=0.9)
        >>> snapshot = Snapshot(optimizer)
        >>> weight.grad = torch.ones(2)
        >>> optimizer.step()
        >>> snapshot.holds()
        False
        >>> snapshot.restore()
        >>> snapshot.holds(), weight.tolist(), len(optimizer.state)
        (True, [0.0, 0.0], 0)
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        largest: int | None = None,
        copy: Callable[[torch.Tensor], torch.Tensor] = torch.clone,
    ) -> None:
        self._largest, self._copy = largest, copy
        self._saved: dict[int, _Saved] = {}
        self._optimizers = [
            (each, self._saved_of(_written(each)))
            for each in (optimizer, *inner_optimizers(optimizer))
        ]
        groups = [group for each, _ in self._optimizers for group in each.param_groups]
        weights = (p for group in groups for p in group["params"] if id(p) not in self._saved)
        self._out_of_reach = [self._save(weight) for weight in weights]

    def restore(self) -> None:
        """Put everything back, in place."""
        done: set[int] = set()
        with torch.no_grad():
            for optimizer, attributes in self._optimizers:
                for key in _written(optimizer).keys() - attributes.keys():
                    del optimizer.__dict__[key]
                for key, saved in attributes.items():
                    optimizer.__dict__[key] = _put_back(saved, done)
            for weight in self._out_of_reach:
                _put_back(weight, done)

    def copy_of(self, tensor: torch.Tensor) -> torch.Tensor | None:
        """What a tensor held; None where it was not saved."""
        saved = self._saved.get(id(tensor))
        content = None if saved is None else saved.content
        return content if isinstance(content, torch.Tensor) else None

    def copies(self) -> list[torch.Tensor]:
        """The copies of tensors."""
        contents = (saved.content for saved in self._saved.values())
        return [content for content in contents if isinstance(content, torch.Tensor)]

    @property
    def size(self) -> int:
        """Bytes of the copies of tensors; of sharded ones, of this rank's part."""
        return sum(copy.numel() * copy.element_size() for copy in local(self.copies()))

    def holds(self) -> bool:
        """True where nothing differs by a single bit."""
        return all(
            _written(optimizer).keys() == attributes.keys()
            and all(_is_as_saved(vars(optimizer)[key], saved) for key, saved in attributes.items())
            for optimizer, attributes in self._optimizers
        ) and all(
            _is_as_saved(saved.original if isinstance(saved, _Saved) else saved, saved)
            for saved in self._out_of_reach
        )

    def _saved_of(self, written: dict[str, object]) -> dict[str, Any]:
        self._in_state = True  # first: what other attributes share with it is saved whole
        saved = {key: self._save(value) for key, value in written.items() if key == "state"}
        self._in_state = False
        return {key: saved[key] if key in saved else self._save(written[key]) for key in written}

    def _save(self, value: Any, depth: int = 0, in_helper: bool = False) -> Any:
        if isinstance(value, _PLAIN):
            return value
        copy = self._saved.get(id(value))
        if copy is not None:
            return copy
        large = self._is_large(value) or (in_helper and _size(value) > MOST_IN_HELPERS)
        content = None if large else _content(value, self._copy)
        parts = value if isinstance(value, dict) else None
        deepest = DEEPEST_IN_STATE if self._in_state else HELPERS_WITHIN
        if content is None and not large and depth <= deepest and is_helper(value):
            content, parts, in_helper = {}, vars(value), not self._in_state
        if content is None:
            return value  # an object whose content is not known here
        saved = self._saved[id(value)] = _Saved(value, content)  # first: it may hold itself
        if parts is not None:
            each = ((key, self._save(part, depth + 1, in_helper)) for key, part in parts.items())
            content.update(each)
        elif isinstance(value, (list, tuple, deque, ChainMap)):
            several = value.maps if isinstance(value, ChainMap) else value
            content.extend(self._save(part, depth + 1, in_helper) for part in several)
        return saved

    def _is_large(self, value: Any) -> bool:
        limited = self._largest is not None and isinstance(value, torch.Tensor)
        return limited and value.numel() > self._largest


def _size(value: Any) -> int:
    """Elements of a tensor or an array, entries of a container; 1 of anything else."""
    if isinstance(value, torch.Tensor):
        return value.numel()
    if isinstance(value, np.ndarray):
        return int(value.size)
    return len(value) if isinstance(value, (dict, list, tuple, deque, set)) else 1


def same_bits(left: object, right: object) -> bool:
    """Compare nested containers of tensors and plain values; NaN equals NaN.

    Example:
        >>> same_bits({"a": [torch.tensor([1.0, float("nan")])]}, {"a": [torch.tensor([1.0, 0.0])]})
        False
    """
    if isinstance(left, torch.Tensor) and isinstance(right, torch.Tensor):
        alike = left.dtype == right.dtype and left.shape == right.shape
        alike = alike and left.layout == right.layout
        if left.layout is not torch.strided:
            left, right = left.to_dense(), right.to_dense()
        return alike and bool(torch.isclose(left, right, rtol=0, atol=0, equal_nan=True).all())
    if isinstance(left, np.ndarray) and isinstance(right, np.ndarray):
        return np.array_equal(left, right)
    if isinstance(left, dict) and isinstance(right, dict):
        return left.keys() == right.keys() and all(same_bits(left[k], right[k]) for k in left)
    if isinstance(left, list | tuple) and isinstance(right, list | tuple):
        return len(left) == len(right) and all(map(same_bits, left, right))
    return bool(left == right or (left != left and right != right))


def _content(value: object, copy: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """A copy of what an object holds; empty for a container; None for what is not known here."""
    if isinstance(value, torch.Tensor):
        return copy(value.detach())
    if isinstance(value, (np.ndarray, set)):
        return value.copy()
    if isinstance(value, SOURCES_OF_NUMBERS):
        return source_state(value)
    if isinstance(value, dict):
        return {}
    return [] if isinstance(value, (list, tuple, deque, ChainMap)) else None


def _written(optimizer: torch.optim.Optimizer) -> dict[str, object]:
    return {key: value for key, value in vars(optimizer).items() if key not in HOOKS}


def _put_back(saved: object, done: set[int]) -> Any:
    if not isinstance(saved, _Saved):
        return saved
    original, content = saved
    if id(original) in done:
        return original
    done.add(id(original))
    if isinstance(original, torch.Tensor):
        if original.shape != content.shape or original.layout is not content.layout:
            original.data = content.to(original.device)
        else:
            original.copy_(content)
    elif isinstance(original, np.ndarray):
        original[...] = content
    elif isinstance(original, dict):
        original.clear()
        original.update({key: _put_back(each, done) for key, each in content.items()})
    elif isinstance(original, (list, deque)):
        restored = [_put_back(each, done) for each in content]
        original.clear()
        original.extend(restored)
    elif isinstance(original, ChainMap):
        original.maps = [_put_back(each, done) for each in content]
    elif isinstance(original, tuple):
        for each in content:
            _put_back(each, done)
    elif isinstance(original, set):
        original.clear()
        original.update(content)
    elif isinstance(original, SOURCES_OF_NUMBERS):
        set_source_state(original, content)
    else:
        vars(original).clear()
        vars(original).update({key: _put_back(each, done) for key, each in content.items()})
    return original


def _is_as_saved(value: object, saved: object) -> bool:
    if not isinstance(saved, _Saved):
        plain = isinstance(value, _PLAIN) and isinstance(saved, _PLAIN)
        return same_bits(value, saved) if plain else value is saved
    content = saved.content
    if isinstance(value, dict):
        alike = isinstance(content, dict) and value.keys() == content.keys()
        return alike and all(_is_as_saved(value[key], content[key]) for key in content)
    if isinstance(value, (list, tuple, deque)):
        alike = isinstance(content, list) and len(value) == len(content)
        return alike and all(map(_is_as_saved, value, content))
    if isinstance(value, ChainMap):
        alike = value is saved.original and len(value.maps) == len(content)
        return alike and all(map(_is_as_saved, value.maps, content))
    if isinstance(value, SOURCES_OF_NUMBERS):
        return same_bits(source_state(value), content)
    if isinstance(value, (torch.Tensor, np.ndarray, set)):
        return type(value) is type(saved.original) and same_bits(value, content)
    if value is not saved.original:
        return False
    alike = vars(value).keys() == content.keys()
    return alike and all(_is_as_saved(vars(value)[key], content[key]) for key in content)
