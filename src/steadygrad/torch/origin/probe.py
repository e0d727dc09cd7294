"""The instruments of a replay: every function's inputs and results, every backward function.

What is non-finite is followed to the function whose inputs were still finite. An
infinity that was meant (a mask filled with -inf) is no fault, and is passed through until a
function makes NaN of it.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch.overrides import TorchFunctionMode

from steadygrad.torch.internals.transforms import TorchDispatchMode
from steadygrad.torch.origin.entries import tensors_in
from steadygrad.torch.origin.looks import Look, is_mask, is_readable, look_at, storage_of, within
from steadygrad.torch.origin.places import Place, is_library

GOOD, MEANT, BAD = "good", "meant", "bad"


@dataclass(eq=False)
class Note:
    """One call of a function during the replay.

    Attributes:
        number: its place in time.
        name: of the function.
        place: the nearest line outside torch.
        module: path and class of the module that ran it.
        inputs: its floating tensors, as they were before it.
        causes: earlier calls, or outside tensors, whose results were bad already.
        kind: ``nan`` or ``inf`` where its own result is bad.
        result: the bad result.
        outside: ``weights`` or ``input`` for what no call made.
    """

    number: int
    name: str
    place: Place
    module: tuple[str, str]
    inputs: list[Look]
    causes: list[Note] = field(default_factory=list)
    kind: str = ""
    result: Look | None = None
    outside: Literal["weights", "input", ""] = ""


@dataclass(eq=False)
class BrokenCall:
    """A backward function that met or made something non-finite.

    Attributes:
        node: its name.
        note: the forward call that it belongs to.
        kind: ``nan`` or ``inf``.
        made: it made that from finite gradients; else several finite ones overflowed in a sum.
        grads_in: the gradients that it was called with.
        result: the bad gradient.
        inner: a call inside a custom backward that made it.
    """

    node: str
    note: Note | None
    kind: str
    made: bool
    grads_in: list[Look]
    result: Look
    inner: Note | None = None


class Probe(TorchFunctionMode):
    """Watches a replay; active while it is on the stack of function modes.

    Args:
        stop: code of the function that calls replayed functions: no line beyond it counts.

    Attributes:
        base: the line that called what is being replayed.
        names_by_id: of tensors that were there before the step: parameters and buffers.
        notes: the calls.
        events: what went wrong in the backward pass.
        modules: path and class of the modules that are running, the innermost last.
    """

    def __init__(self, stop: Any) -> None:
        super().__init__()
        self.base: Place = (stop, 0)
        self.names_by_id: dict[int, str] = {}
        self.notes: list[Note] = []
        self.events: list[BrokenCall] = []
        self.modules: list[tuple[str, str]] = []
        self._stop = stop
        self._bad: dict[int, tuple[torch.Tensor, Note]] = {}
        self._meant: dict[int, tuple[torch.Tensor, Note]] = {}
        self._storages: dict[int, Note] = {}
        self._nodes: dict[object, Note] = {}
        self._late: list[Note] = []

    # -- forward ---------------------------------------------------------------------------

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> object:
        kwargs = kwargs or {}
        if getattr(func, "__name__", "") in _SILENT:
            return func(*args, **kwargs)
        return self._call(func, _name_of(func), args, kwargs)

    def custom(self, call: Any, cls: Any, args: Any, kwargs: Any) -> Any:
        """A custom autograd function is applied."""
        return self._call(call, cls.__name__, args, kwargs)

    def _call(self, func: Any, name: str, args: Any, kwargs: Any) -> object:
        inputs = [t for t in tensors_in((args, kwargs)) if is_readable(t)]
        note = self._note(name)
        states = [self._enter(note, tensor, i) for i, tensor in enumerate(inputs)]
        result = func(*args, **kwargs)
        leaves = list(tensors_in(result))
        if not leaves and name.endswith("__setitem__"):
            leaves = [args[0]]
        meant = MEANT in states or any(map(_minus_infinity, _numbers((args, kwargs))))
        for leaf in leaves:
            self._leave(note, leaf, meant)
            self._own(within(leaf).grad_fn, note)
        return result

    def _note(self, name: str) -> Note:
        note = Note(len(self.notes), name, self._place(), self._module(), [])
        self.notes.append(note)
        return note

    def _enter(self, note: Note, tensor: torch.Tensor, number: int) -> str:
        """Read an input; whatever is wrong with it becomes a cause, unless it was meant."""
        look = look_at(tensor, self.names_by_id.get(id(tensor), f"input {number}"))
        note.inputs.append(look)
        if not look.kind:
            return GOOD
        if self._is_meant(tensor, look):
            return MEANT
        note.causes.append(self._maker(tensor, look))
        return BAD

    def _leave(self, note: Note, leaf: torch.Tensor, meant: bool) -> None:
        if not is_readable(leaf) or note.name.rpartition(".")[2].startswith(_UNSET):
            return
        inner = self._bad.pop(id(leaf), None)
        look = look_at(leaf, "result")
        if not look.kind:
            return
        if inner is not None and inner[1].number > note.number:  # made inside a custom function
            note.causes.append(inner[1])
        if meant and not note.causes and look.kind == "inf" and not look.positive:
            self._meant[id(leaf)] = (leaf, note)
            return
        if not note.kind or look.kind == "nan":
            note.kind, note.result = look.kind, look
        self._bad[id(leaf)] = (leaf, note)
        self._storages[storage_of(leaf)] = note

    def _is_meant(self, tensor: torch.Tensor, look: Look) -> bool:
        entry = self._meant.get(id(tensor))
        if entry is not None and entry[0] is tensor:
            return True
        if id(tensor) in self._bad or storage_of(tensor) in self._storages or look.kind == "nan":
            return False
        return is_mask(look)

    def _maker(self, tensor: torch.Tensor, look: Look) -> Note:
        """The call that made a bad tensor; one that stands for the outside where none did."""
        entry = self._bad.get(id(tensor))
        if entry is not None and entry[0] is tensor:
            return entry[1]
        by_storage = self._storages.get(storage_of(tensor))
        if by_storage is not None:
            return by_storage
        what = self.names_by_id.get(id(tensor), "")
        outside = Note(len(self.notes), what or "data", self.base, self._module(), [look])
        outside.kind, outside.result = look.kind, look
        outside.outside = "weights" if what else "input"
        self._bad[id(tensor)] = (tensor, outside)
        return outside

    def maker_of(self, tensor: torch.Tensor) -> Note | None:
        """The call that made this bad tensor; None for a good one."""
        if not is_readable(tensor):
            return None
        meant = self._meant.get(id(tensor))
        if meant is not None and meant[0] is tensor:  # a mask, but no loss may be infinite
            meant[1].kind, meant[1].result = "inf", look_at(tensor, "result")
            return meant[1]
        look = look_at(tensor, "result")
        return self._maker(tensor, look) if look.kind else None

    def leaves_module(self, inputs: object, output: object) -> None:
        """A module returns: where nothing was seen inside it, it stands for what it did."""
        path, kind = self._module()
        note = Note(len(self.notes), kind, self._place(), (path, kind), [])
        self.notes.append(note)
        for leaf in tensors_in(output):
            if not is_readable(leaf):
                continue
            unseen = id(leaf) not in self._bad and storage_of(leaf) not in self._storages
            if unseen and id(leaf) not in self._meant and look_at(leaf, "").kind:
                for number, tensor in enumerate(filter(is_readable, tensors_in(inputs))):
                    self._enter(note, tensor, number)
                self._leave(note, leaf, False)
            self._own(leaf.grad_fn, note)

    def returned(self, leaves: Iterable[torch.Tensor]) -> None:
        """What was replayed from the tape has returned: the rest of its graph is its line's."""
        note: Note | None = None
        for leaf in leaves:
            if leaf.grad_fn is not None and leaf.grad_fn not in self._nodes:
                if note is None:
                    note = Note(len(self.notes), "", self.base, self._module(), [])
                    self.notes.append(note)
                self._own(leaf.grad_fn, note)

    def _module(self) -> tuple[str, str]:
        return self.modules[-1] if self.modules else ("", "")

    def _place(self) -> Place:
        frame = sys._getframe(1)
        while frame is not None and frame.f_code is not self._stop:
            if not is_library(frame.f_code):
                return frame.f_code, frame.f_lasti
            frame = frame.f_back  # type: ignore[assignment]
        return self.base

    # -- backward --------------------------------------------------------------------------

    def _own(self, node: Any, note: Note) -> None:
        """Ascribe to a call the backward functions that it has made."""
        waiting = [node]
        while waiting:
            node = waiting.pop()
            if node is None or node in self._nodes or hasattr(node, "variable"):
                continue
            self._nodes[node] = note
            waiting += [following for following, _ in node.next_functions]

    def watch_backward(self, nodes: Iterable[Any]) -> None:
        """Read what every backward function is given and makes."""
        for node in nodes:
            node.register_hook(self._hook(node))

    def _hook(self, node: Any) -> object:
        note, name = self._nodes.get(node), node.name()

        def hook(made: tuple[Any, ...], grads_in: tuple[Any, ...]) -> None:
            entered = [look_at(g, "gradient") for g in grads_in if g is not None and is_readable(g)]
            left = [look_at(g, "gradient") for g in made if g is not None and is_readable(g)]
            broken = next((look for look in entered if look.kind), None)
            bad = broken or next((look for look in left if look.kind), None)
            inner = self._inner()
            if bad is not None:
                inner = None if broken else inner
                event = BrokenCall(name, note, bad.kind, broken is None, entered, bad, inner)
                self.events.append(event)

        return hook

    def _inner(self) -> Note | None:
        """The call in a custom backward that has just made something non-finite."""
        late, self._late = self._late, []
        return next((note for note in late if note.kind and not note.causes), None)

    def inside_backward(self, func: Any, args: Any, kwargs: Any) -> object:
        """A call during the backward pass: of interest where a line of the user's made it."""
        if self._place() is self.base:
            return func(*args, **kwargs)
        result = self._call(func, func.overloadpacket.__name__, args, kwargs)
        self._late.append(self.notes[-1])
        return result


class BackwardProbe(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Shows a probe what custom backward functions call; the engine hides it from function modes.

    Args:
        probe: which is told.
    """

    def __init__(self, probe: Probe) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._probe = probe

    def __torch_dispatch__(
        self, func: object, types: object, args: object = (), kwargs: object = None
    ) -> object:
        return self._probe.inside_backward(func, args, kwargs or {})


_SILENT = frozenset(["__get__", "__set__", "dim", "size", "item", "tolist", "requires_grad_"])
_UNSET = ("empty", "new_empty")


def _numbers(value: object) -> Iterator[float]:
    if isinstance(value, float):
        yield value
    elif isinstance(value, dict):
        yield from _numbers(tuple(value.values()))
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from _numbers(item)


def _minus_infinity(number: float) -> bool:
    return number == -math.inf


def _name_of(func: object) -> str:
    name = str(getattr(func, "__name__", "") or type(func).__name__)
    if hasattr(func, "__objclass__") or str(getattr(func, "__qualname__", "")).startswith(
        "Tensor."
    ):
        return f"Tensor.{name}"
    if getattr(torch, name, None) is func:
        return f"torch.{name}"
    return f"F.{name}" if hasattr(torch.nn.functional, name) else f"torch.{name}"
