"""What is kept of every step so that it can be replayed: a tape of calls, and no copies.

Between one optimizer step and the next `backward`, each outermost module call and each
torch function called outside modules becomes an entry: the function, its arguments,
the caller's line. Inside a module nothing is written, since the replay calls the module
again. Results are held weakly: the replay makes them anew. What entered from elsewhere
(the batch, targets, a hidden state) is held by reference with its version counter, which
tells at replay whether it has been changed since.
"""

from __future__ import annotations

import os
import sys
import threading
import weakref
from collections.abc import Iterator
from types import CodeType, FrameType
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from steadygrad.invisible import invisible
from steadygrad.torch.origin import kinds
from steadygrad.torch.origin.states import Draws, Generators

MOST_BYTES = 256 << 20
"""Of data that entered, held until the next step; beyond it the oldest calls are forgotten."""
MOST_ENTRIES = 4096
STALE = 8
"""Steps of other optimizers after which one that stands still is no longer waited for."""

_TORCH = os.path.dirname(torch.__file__) + os.sep
_OURS = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))) + os.sep
_DEMOS = os.path.join(_OURS, "demos") + os.sep

Place = tuple[CodeType, int]
"""A line of a program, cheap to note: its code and the offset of the instruction."""


class Held:
    """A tensor that entered from outside the tape."""

    __slots__ = ("copied", "value", "version", "was_graph")

    def __init__(self, value: torch.Tensor) -> None:
        self.was_graph = value.grad_fn is not None
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
    """A tensor that an entry made: its number among the entry's results."""

    __slots__ = ("entry", "leaf")

    def __init__(self, entry: Entry, leaf: int) -> None:
        self.entry, self.leaf = entry, leaf


class Rebuilt:
    """A container that is neither a plain list, tuple nor dict, with what it held."""

    __slots__ = ("items", "like")

    def __init__(self, like: Any, items: Any) -> None:
        self.like, self.items = like, items


class Entry:
    """One call.

    Attributes:
        kind: ``operation``, ``module``, ``constant`` or ``backward``.
        func: what was called; the module itself for a module.
        args: its arguments; tensors are `Held` or `Use`.
        kwargs: the same, by name.
        place: the caller's line.
        clock: optimizer steps before it.
        grad: whether gradients were recorded.
        cast: the autocast in force, or None.
        draws: generators before it, where it may draw.
        value: a constant's tensors; the root of a backward, without its graph.
        training: the module's mode.
        chain: names of the backward functions nearest to a root that is not on the tape.
    """

    # values of the class stand for what most calls do not have: this is made at every call
    args: Any = ()
    kwargs: Any = None
    cast: tuple[tuple[str, torch.dtype], ...] | None = None
    draws: Draws | None = None
    value: Any = None
    training = True
    chain: tuple[str, ...] = ()

    def __init__(self, kind: str, func: Any, clock: int, place: Place) -> None:
        self.kind, self.func, self.clock, self.place = kind, func, clock, place
        self.grad = torch.is_grad_enabled()
        if torch._C._is_any_autocast_enabled():
            self.cast = autocast_now()


class _Listener(TorchFunctionMode):
    """Stands on torch's stack of function modes while the tape listens outside modules."""

    def __init__(self, tape: Tape) -> None:
        super().__init__()
        self.tape = tape

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if torch.compiler.is_dynamo_compiling():  # traced: a constant there
            return func(*args, **(kwargs or {}))
        tape = self.tape
        kind = kinds.known.get(func)
        if kind == kinds.PLAIN or not tape.armed:
            return func(*args, **kwargs) if kwargs else func(*args)
        return tape.operation(kind, func, args, kwargs)


invisible(_Listener.__torch_function__)


class Tape:
    """The calls since the last step, in order.

    Attributes:
        armed: calls are written down now; False inside a module, a step or a replay.
        entries: the calls.
        clock: optimizer steps so far.
        thread: the one that trains; others are not heard.
    """

    def __init__(self) -> None:
        self.armed = False
        self.thread = threading.get_ident()
        self.clock = 0
        self.entries: list[Entry] = []
        self.steps: list[tuple[int, weakref.ref[Any]]] = []
        self.forgot = False
        self._made: dict[int, tuple[weakref.ref[torch.Tensor], Entry, int]] = {}
        self._helds: dict[int, Held] = {}
        self._bytes = 0
        self._entered = 0
        self._marks: dict[int, int] = {}
        self._mode = _Listener(self)
        self._generators = Generators()

    # -- listening -------------------------------------------------------------------------

    def listen(self) -> None:
        """Write down module calls, and operations outside them from here on."""
        self.thread = threading.get_ident()
        self.armed = True
        self.put_on()

    def rest(self) -> None:
        """Write nothing down until `listen`."""
        self.armed = False
        self.take_off()

    def put_on(self) -> None:
        """Stand on the stack of function modes, where nobody else's mode could be disturbed.

        A mode of the user's that is entered and left by ``with`` pops whatever is on top.
        """
        below = torch._C._len_torch_function_stack()
        if below and torch._C._get_function_stack_at(below - 1) is self._mode:
            return
        if below == 0 or (below == 1 and _is_default_device()):
            torch._C._push_on_torch_function_stack(self._mode)

    def take_off(self) -> bool:
        """Leave the stack; False where we are not on top of it."""
        depth = torch._C._len_torch_function_stack()
        if depth == 0 or torch._C._get_function_stack_at(depth - 1) is not self._mode:
            return False
        torch._C._pop_torch_function_stack()
        return True

    # -- writing down ----------------------------------------------------------------------

    def operation(self, kind: int | None, func: Any, args: Any, kwargs: Any) -> Any:
        """Call a torch function and write it down."""
        kind = kinds.kind_of(func) if kind is None else kind
        if kind == kinds.PLAIN or (kind == kinds.IN_PLACE and _updates_a_weight(args)):
            return func(*args, **kwargs) if kwargs else func(*args)
        entry = Entry("operation", func, self.clock, place_of(sys._getframe(2)))
        if kind == kinds.IN_PLACE and args and isinstance(args[0], torch.Tensor):
            self._keep_before(args[0])
        self._entered = 0
        entry.args = tuple([self._pack(item) for item in args])
        if kwargs:
            entry.kwargs = {key: self._pack(item) for key, item in kwargs.items()}
        if kind == kinds.RANDOM:
            entry.draws = self._generators.now()
        result = func(*args, **kwargs) if kwargs else func(*args)
        if type(result) is torch.Tensor:
            self._keep(entry, [result])
        else:
            self._keep_others(entry, func, args, result)
        return result

    def _keep_others(self, entry: Entry, func: Any, args: Any, result: Any) -> None:
        leaves = list(tensors_in(result))
        if not leaves and getattr(func, "__name__", "") == "__setitem__":
            leaves = [args[0]]
        if leaves:
            self._keep(entry, leaves)
        elif result is not None and (
            not isinstance(result, (tuple, list, dict)) or isinstance(result, torch.Size)
        ):
            kinds.known[func] = kinds.PLAIN

    def module(self, call: Any, module: torch.nn.Module, args: Any, kwargs: Any) -> Any:
        """Call an outermost module and write it down."""
        if self.thread != threading.get_ident() or torch._C._get_tracing_state() is not None:
            return call(module, *args, **kwargs)
        was_on = self.take_off()
        self.armed = False
        try:
            entry = Entry("module", module, self.clock, place_of(sys._getframe(2)))
            entry.args, entry.kwargs = self._pack(args), self._pack(kwargs)
            entry.training = module.training
            entry.draws = self._generators.before(module)
            result = call(module, *args, **kwargs)
            self._generators.after(module, entry.draws)
            self._keep(entry, list(tensors_in(result)))
        finally:
            self.armed = True
            if was_on or torch._C._len_torch_function_stack() < 2:
                self.put_on()
        return result

    def listens_here(self) -> bool:
        """Whether calls of this thread are written down now."""
        return self.armed and self.thread == threading.get_ident()

    def hears_backward(self) -> bool:
        """Whether a `backward` that begins here is the training's, not one inside another."""
        return self.listens_here() and torch._C._current_graph_task_id() == -1

    def function(self, again: Any, call: Any, args: Any, kwargs: Any) -> Any:
        """Call a custom autograd function outside modules and write it down."""
        was_on = self.take_off()
        self.armed = False
        try:
            entry = Entry("operation", again, self.clock, place_of(sys._getframe(2)))
            entry.args, entry.kwargs = self._pack(args), self._pack(kwargs)
            entry.draws = self._generators.now()
            result = call(*args, **kwargs)
            self._keep(entry, list(tensors_in(result)))
        finally:
            self.armed = True
            if was_on:
                self.put_on()
        return result

    def backward(self, roots: Any, grads: Any, inputs: Any) -> None:
        """`backward` is called: write it down, and rest until the next module call."""
        self.take_off()
        entry = Entry("backward", None, self.clock, place_of(sys._getframe(2)))
        entry.args = (self._pack(roots), self._pack(grads), self._pack(inputs))
        entry.value = [root.detach() for root in roots]
        for packed, root in zip(entry.args[0], roots, strict=True):
            if isinstance(packed, Held):
                entry.chain = chain_of(root)
        self.entries.append(entry)

    # -- forgetting ------------------------------------------------------------------------

    def stepped(self, optimizer: Any) -> None:
        """An optimizer has stepped: forget what no optimizer's next step can need."""
        self.steps = [(c, ref) for c, ref in self.steps if ref() is not None][-STALE:]
        self.steps.append((self.clock, weakref.ref(optimizer)))
        self.clock += 1
        self._marks[id(optimizer)] = self.clock
        others = [m for key, m in self._marks.items() if key != id(optimizer)]
        waited = [mark for mark in others if mark > self.clock - STALE]
        self._forget_before(min(waited, default=self.clock))

    def clear(self) -> None:
        """Forget everything."""
        self.entries, self._made, self._helds, self._bytes = [], {}, {}, 0
        self.forgot = False

    @property
    def bare(self) -> bool:
        """Whether no module was called: then a loop's operations are all there is."""
        return all(entry.kind != "module" for entry in self.entries)

    def since_step_of(self, optimizer: Any) -> list[Entry]:
        """The backward entries whose gradients this optimizer is about to apply."""
        mark = self._marks.get(id(optimizer), 0)
        return [e for e in self.entries if e.kind == "backward" and e.clock >= mark]

    def _forget_before(self, clock: int) -> None:
        if clock >= self.clock:
            self.clear()
            return
        self.entries = [e for e in self.entries if e.clock >= clock]
        self._made = {k: m for k, m in self._made.items() if m[1].clock >= clock}
        self._helds, self._bytes = {}, 0  # the entries hold what they need

    def _forget_oldest(self) -> None:
        self.forgot = True
        half = self.entries[: len(self.entries) // 2 + 1]
        gone = set(map(id, half))
        self.entries = self.entries[len(half) :]
        self._made = {k: m for k, m in self._made.items() if id(m[1]) not in gone}
        self._helds, self._bytes = {}, 0

    # -- arguments and results -------------------------------------------------------------

    def _keep(self, entry: Entry, leaves: list[torch.Tensor]) -> None:
        if entry.kind == "operation" and (self._entered == 0 or entry.draws is not None):
            self._keep_constant(entry, leaves)
        self.entries.append(entry)
        made = self._made
        for number, leaf in enumerate(leaves):
            made[id(leaf)] = (weakref.ref(leaf), entry, number)
        if self._bytes > MOST_BYTES or len(self.entries) > MOST_ENTRIES:
            self._forget_oldest()

    def _keep_constant(self, entry: Entry, leaves: list[torch.Tensor]) -> None:
        """What no tensor went into, and what was drawn, is kept as it is."""
        if not any(leaf.requires_grad for leaf in leaves):
            entry.kind, entry.value = "constant", [Held(leaf) for leaf in leaves]
            self._bytes += sum(leaf.nbytes for leaf in leaves if leaf.layout is torch.strided)
            entry.args, entry.kwargs, entry.draws = (), None, None

    def _keep_before(self, target: torch.Tensor) -> None:
        """A tensor from outside is about to be changed in place: keep a copy of it."""
        packed = self._pack(target)
        if isinstance(packed, Use) and packed.entry.kind == "constant":
            packed = packed.entry.value[packed.leaf]
        if isinstance(packed, Held) and not isinstance(target, torch.nn.Parameter):
            packed.keep_copy()

    def _pack(self, value: Any) -> Any:
        kind = type(value)
        if kind in _SIMPLE:
            return value
        if kind is torch.Tensor or issubclass(kind, torch.Tensor):
            self._entered += 1
            made = self._made.get(id(value))
            if made is not None and made[0]() is value:
                return Use(made[1], made[2])
            return self._hold(value)
        if kind is tuple:
            return tuple([self._pack(item) for item in value])
        if kind is list:
            return [self._pack(item) for item in value]
        if kind is dict:
            return {key: self._pack(item) for key, item in value.items()}
        if isinstance(value, tuple) and kind is not torch.Size:
            return Rebuilt(value, [self._pack(item) for item in value])
        if isinstance(value, dict):
            return Rebuilt(value, {key: self._pack(item) for key, item in value.items()})
        return value

    def _hold(self, value: torch.Tensor) -> Held:
        held = self._helds.get(id(value))
        if held is not None and held.value is value and not held.changed:
            return held
        held = Held(value)
        self._helds[id(value)] = held
        if type(value) is torch.Tensor:
            self._bytes += value.nbytes if value.layout is torch.strided else 0
        return held


_SIMPLE = frozenset(
    [type(None), bool, int, float, str, slice, torch.dtype, torch.device, type(Ellipsis)]
)


def place_of(frame: FrameType | None) -> Place:
    """The nearest line outside torch and steadygrad."""
    first = frame
    while frame is not None and _library.get(frame.f_code, True) and is_library(frame.f_code):
        frame = frame.f_back
    found = frame or first
    assert found is not None
    return found.f_code, found.f_lasti


_library: dict[CodeType, bool] = {}


def is_library(code: CodeType) -> bool:
    """Whether code is torch's or ours."""
    known = _library.get(code)
    if known is None:
        file = code.co_filename
        known = file.startswith((_TORCH, _OURS, "<frozen importlib"))
        known = known and not file.startswith(_DEMOS)
        _library[code] = known
    return known


def line_of(place: Place) -> tuple[str, int]:
    """File and line number of a place."""
    code, offset = place
    for start, end, line in code.co_lines():
        if start <= offset < end and line is not None:
            return code.co_filename, line
    return code.co_filename, code.co_firstlineno


def version_of(tensor: torch.Tensor) -> int:
    """The counter of in-place changes; -1 for a tensor without one."""
    try:
        return tensor._version
    except RuntimeError:  # made under inference mode
        return -1


def autocast_now() -> tuple[tuple[str, torch.dtype], ...] | None:
    """Devices with autocast on, and its dtype; None for none."""
    if not torch._C._is_any_autocast_enabled():
        return None
    devices = [d for d in ("cpu", "cuda") if torch.is_autocast_enabled(d)]
    return tuple((device, torch.get_autocast_dtype(device)) for device in devices)


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


def _flat(packed: Any) -> Iterator[Any]:
    if isinstance(packed, Rebuilt):
        packed = packed.items
    if isinstance(packed, dict):
        packed = list(packed.values())
    if isinstance(packed, (tuple, list)):
        for item in packed:
            yield from _flat(item)
    else:
        yield packed


def parts_of(entry: Entry) -> Iterator[Any]:
    """Everything in an entry's arguments that is no container."""
    yield from _flat((entry.args, entry.kwargs))


def _updates_a_weight(args: Any) -> bool:
    first = args[0] if args else None
    weight = isinstance(first, torch.Tensor) and first.is_leaf and first.requires_grad
    return weight and not torch.is_grad_enabled()


def _is_default_device() -> bool:
    context = getattr(torch._GLOBAL_DEVICE_CONTEXT, "device_context", None)
    return context is not None and torch._C._get_function_stack_at(0) is context
