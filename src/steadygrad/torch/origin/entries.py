"""What the tape holds: notes, written at every call, and the entries that a replay reads.

A note is a plain tuple, since one is made at every call of a healthy training, when the
processor's caches hold the model's figures and none of this code: each Python object and each
line counts. In a note, a tensor that the tape has seen made is the weak reference that its
maker's note holds; which maker that was is found out only when somebody reads the entries.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from steadygrad.torch.origin.places import Place
from steadygrad.torch.origin.states import Draws

Mark = weakref.ref[torch.Tensor]
"""Stands for a tensor that was made on the tape. torch keeps one such reference a tensor."""

Note = tuple[str, Any, Any, Any, Place, int, bool, Any, Any, Any]
"""``(kind, func, args, kwargs, place, clock, grad, cast, made, more)``, as in `TapeEntry`.

``made`` is a mark or a list of them, ``more`` the attributes that most calls do not have.
"""


class OutsideTensor:
    """A tensor that entered from outside the tape."""

    __slots__ = ("copied", "value", "version", "was_graph")

    def __init__(self, value: torch.Tensor) -> None:
        self.was_graph = value.requires_grad and not value.is_leaf
        # without its graph, which would live on; the version counter is shared
        self.value = value.detach() if self.was_graph else value
        self.version = version_of(value)
        self.copied = False

    def keep_copy(self) -> None:
        """Keep what it holds now: it is about to be changed in place."""
        if not self.copied and not self.changed:
            self.value, self.copied = self.value.detach().clone(), True
            self.version = version_of(self.value)

    @property
    def changed(self) -> bool:
        """Whether it was changed in place since."""
        return version_of(self.value) != self.version


class Use:
    """A tensor that an entry made: its number among the entry's results.

    The entry is None where the tape has forgotten it.
    """

    __slots__ = ("entry", "leaf")

    def __init__(self, entry: TapeEntry | None, leaf: int) -> None:
        self.entry, self.leaf = entry, leaf


class Rebuilt:
    """A container that is neither a plain list, tuple nor dict, with what it held."""

    __slots__ = ("items", "like")

    def __init__(self, like: Any, items: Any) -> None:
        self.like, self.items = like, items


class TapeEntry:
    """One call.

    Attributes:
        kind: ``operation``, ``module``, ``constant`` or ``backward``.
        func: what was called; the module itself for a module.
        args: its arguments; tensors are `OutsideTensor` or `Use`.
        kwargs: the same, by name.
        place: the caller's line.
        clock: optimizer steps before it.
        grad: whether gradients were recorded.
        cast: the autocast in force, or None.
        draws: generators before it, where it may draw.
        value: a constant's tensors.
        training: the module's mode.
        losses: a backward's roots, as numbers where they are numbers.
        chain: names of the backward functions nearest to a root that is not on the tape.
    """

    draws: Draws | None = None
    value: Sequence[OutsideTensor] = ()
    training = True
    losses: Sequence[Any] = ()
    chain: tuple[str, ...] = ()

    def __init__(self, note: Note, made: dict[int, Use]) -> None:
        self.kind, self.func, args, kwargs, self.place, self.clock, self.grad, cast, _, more = note
        self.args, self.kwargs = _read(args, made), _read(kwargs, made)
        self.cast: tuple[tuple[str, torch.dtype], ...] | None = cast
        vars(self).update(more or {})


def entries_of(notes: Sequence[Note]) -> list[TapeEntry]:
    """What was noted, in order, each tensor with the call that made it."""
    made: dict[int, Use] = {}
    entries = []
    for note in notes:
        entry = TapeEntry(note, made)
        entries.append(entry)
        for leaf, mark in enumerate(marks_of(note)):
            made[id(mark)] = Use(entry, leaf)
    return entries


def marks_of(note: Note) -> Sequence[Mark]:
    """The marks of what a call made."""
    made = note[8]
    return made if type(made) is list else [made]


def _read(packed: Any, made: dict[int, Use]) -> Any:
    kind = type(packed)
    if kind is weakref.ref:
        return made.get(id(packed), Use(None, 0))
    if kind in (tuple, list):
        return kind(_read(item, made) for item in packed)
    if kind is dict:
        return {key: _read(item, made) for key, item in packed.items()}
    return Rebuilt(packed.like, _read(packed.items, made)) if kind is Rebuilt else packed


def version_of(tensor: torch.Tensor) -> int:
    """The counter of in-place changes; -1 for a tensor without one."""
    try:
        return tensor._version
    except RuntimeError:  # made under inference mode
        return -1


def tensors_in(value: Any) -> Iterator[torch.Tensor]:
    """The tensors in a result, in an order that a second call of the same function repeats."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from tensors_in(item)
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from tensors_in(item)
    elif hasattr(type(value), "__dataclass_fields__"):
        for name in type(value).__dataclass_fields__:
            yield from tensors_in(getattr(value, name, None))


def chain_of(root: torch.Tensor, most: int = 8) -> tuple[str, ...]:
    """Names of the backward functions nearest to a root."""
    names: list[str] = []
    waiting = [root.grad_fn]
    while waiting and len(names) < most:
        node = waiting.pop(0)
        if node is not None:
            names.append(node.name())
            waiting += [following for following, _ in node.next_functions]
    return tuple(names)


def parts_of(entry: TapeEntry) -> Iterator[object]:
    """Everything in an entry's arguments that is no container."""
    yield from _flat((entry.args, entry.kwargs))


def _flat(packed: object) -> Iterator[object]:
    if isinstance(packed, Rebuilt):
        packed = packed.items
    if isinstance(packed, dict):
        packed = list(packed.values())
    if isinstance(packed, (tuple, list)):
        for item in packed:
            yield from _flat(item)
    else:
        yield packed
