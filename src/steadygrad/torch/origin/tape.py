"""What is kept of every step so that it can be replayed: a tape of calls, and no copies.

Between one optimizer step and the next `backward`, each outermost module call and each
torch function called outside modules is noted: the function, its arguments, the caller's line.
Inside a module nothing is written, since the replay calls the module
again. Results are held weakly: the replay makes them anew. What entered from elsewhere
(the batch, targets, a hidden state) is held by reference with its version counter, which
tells at replay whether it has been changed since.
"""

from __future__ import annotations

import math
import sys
import threading
import weakref
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch.overrides import TorchFunctionMode

from steadygrad.invisible import invisible
from steadygrad.kernels import native
from steadygrad.torch.internals.modes import hidden
from steadygrad.torch.internals.private import (
    casts,
    default_device_mode,
    mode_at,
    modes,
    pop_mode,
    push_mode,
    tracing_state,
)
from steadygrad.torch.origin import kinds
from steadygrad.torch.origin.entries import (
    Mark,
    Note,
    OutsideTensor,
    Rebuilt,
    TapeEntry,
    chain_of,
    entries_of,
    marks_of,
    tensors_in,
)
from steadygrad.torch.origin.kinds import IN_PLACE, ORDINARY, PLAIN, RANDOM
from steadygrad.torch.origin.places import Place, place_of
from steadygrad.torch.origin.states import GeneratorCopies

MOST_BYTES = 256 << 20
"""Of data that entered, held until the next step; beyond it the oldest calls are forgotten."""
MOST_NOTES = 4096
STALE = 8
"""Steps of other optimizers after which one that stands still is no longer waited for."""

Call = tuple[Any, Any, Any, Place]
"""A function, its arguments as they are noted, by place and by name, and the caller's line."""

_kind_by_function = kinds.kind_by_function
_Tensor, _Parameter = torch.Tensor, torch.nn.Parameter
_mark_of = weakref.ref
_records_graph = torch.is_grad_enabled
_frame = sys._getframe
_is_traced = torch.compiler.is_dynamo_compiling


class _Listener(TorchFunctionMode):
    """Stands on torch's stack of function modes while the tape listens outside modules."""

    def __init__(self, tape: Tape) -> None:
        super().__init__()
        self.tape = tape

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> object:
        if _is_traced():  # a constant there
            return func(*args, **(kwargs or {}))
        tape = self.tape
        kind = _kind_by_function.get(func)
        if kind == PLAIN or not tape.armed:
            return func(*args, **kwargs) if kwargs else func(*args)
        if kind == ORDINARY:
            return tape.usual(func, args, kwargs)
        return tape.operation(kind, func, args, kwargs)


invisible(_Listener.__torch_function__)


Weights = list[tuple[str, torch.Tensor]]


class Struck(NamedTuple):
    """The first step of an optimizer that was not finite.

    Attributes:
        clock: optimizer steps before it, of all.
        weights: what it was about to move, by name.
    """

    clock: int
    weights: list[tuple[str, weakref.ref[torch.Tensor]]]

    def alive(self) -> Weights:
        """Those weights that are still there."""
        return [(name, weight) for name, ref in self.weights if (weight := ref()) is not None]


class Tape:
    """The calls since the last step, in order.

    Attributes:
        armed: calls are written down now; False inside a module, a step or a replay.
        notes: the calls, as they were written down; see `entries`.
        bare: no module was called so far: only a loop's own operations are written down.
        stays: calls are written down after a `backward` too, since losses are computed there.
        clock: optimizer steps so far.
        struck: the first step that was not finite, of each `Finder`.
        thread: the one that trains; others are not heard.
    """

    def __init__(self) -> None:
        self.armed = False
        self.bare = True
        self.thread = threading.get_ident()
        self.stays = False
        self.clock = 0
        self.notes: list[Note] = []
        self.struck: dict[int, Struck] = {}
        self._entries: list[TapeEntry] = []
        self.steps: list[tuple[int, weakref.ref[Any]]] = []
        self._doubtful: list[tuple[int, list[Any]]] = []
        self._made: dict[int, Mark] = {}
        self._outside: dict[int, OutsideTensor] = {}
        self._bytes = 0
        self._entered = 0
        self._marks: dict[int, int] = {}
        self._mode = _Listener(self)
        self._on = False
        self._generators = GeneratorCopies()

    @property
    def entries(self) -> list[TapeEntry]:
        """The calls, to be read."""
        if len(self._entries) != len(self.notes):
            self._entries = entries_of(self.notes)
        return self._entries

    # -- listening -------------------------------------------------------------------------

    def listen(self) -> None:
        """Write down module calls, and operations outside them from here on."""
        self.thread = threading.get_ident()
        self.armed = True
        if self._on and modes() == 0:
            self._on = False  # somebody has emptied the stack
        self.put_on()

    def rest(self) -> None:
        """Write nothing down until `listen`."""
        self.armed = False
        self.take_off()

    def put_on(self) -> None:
        """Stand on the stack of function modes, where nobody else's mode could be disturbed.

        A mode of the user's that is entered and left by ``with`` pops whatever is on top.
        """
        if self._on or hidden():
            return
        below = modes()
        if below == 0 or (below == 1 and _is_default_device()):
            push_mode(self._mode)
            self._on = True

    def take_off(self) -> bool:
        """Leave the stack; False where we are not on top of it."""
        if not self._on:
            return False
        depth = modes()
        if depth == 0 or mode_at(depth - 1) is not self._mode:
            return False
        pop_mode()
        self._on = False
        return True

    # -- writing down ----------------------------------------------------------------------

    def usual(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Call an ordinary torch function and write it down; the shortest way there is."""
        place = place_of(_frame(2))
        self._entered = 0
        packed, named = self._pack_all(args), self._pack(kwargs) if kwargs else None
        entered = self._entered
        result = func(*args, **kwargs) if kwargs else func(*args)
        if entered and type(result) is _Tensor:
            made = self._made[id(result)] = _mark_of(result)
            cast = _autocast_now() if casts() else None
            self.notes.append(
                ("operation", func, packed, named, place, self.clock, _records_graph(), cast,
                 made, None)
            )  # fmt: skip
            if len(self.notes) > MOST_NOTES or self._bytes > MOST_BYTES:
                self._forget_oldest()
        else:
            self._note_result((func, packed, named, place), args, result, entered)
        return result

    def operation(self, kind: int | None, func: Any, args: Any, kwargs: Any) -> Any:
        """Call a torch function of any other kind and write it down."""
        kind = kinds.kind_of(func) if kind is None else kind
        if kind == ORDINARY:
            return self.usual(func, args, kwargs)
        if kind == PLAIN or (kind == IN_PLACE and _updates_a_weight(args)):
            return func(*args, **kwargs) if kwargs else func(*args)
        place = place_of(_frame(2))
        if kind == IN_PLACE and args and isinstance(args[0], _Tensor):
            self._keep_before(args[0])
        self._entered = 0
        packed, named = self._pack_all(args), self._pack(kwargs) if kwargs else None
        more = {"draws": self._generators.now()} if kind == RANDOM else None
        entered = self._entered
        result = func(*args, **kwargs) if kwargs else func(*args)
        self._note_result((func, packed, named, place), args, result, entered, more)
        return result

    def _note_result(
        self, call: Call, args: Any, result: object, entered: int, more: object = None
    ) -> None:
        """Write down a call by what it returned, which is not just one tensor made of tensors."""
        leaves = _leaves_of(call[0], args, result)
        if not leaves:
            _learn_from(call[0], result)
        elif entered and more is None:
            self._note("operation", call, leaves)
        else:
            self._keep_drawn(call, leaves, more)

    def _keep_drawn(self, call: Call, leaves: list[torch.Tensor], more: object) -> None:
        """Store what a replay could not make again: made of no tensors, or drawn at random."""
        if any(leaf.requires_grad for leaf in leaves):
            self._note("operation", call, leaves, more)
            return
        self._bytes += sum(leaf.nbytes for leaf in leaves if leaf.layout is torch.strided)
        more = {"value": [OutsideTensor(leaf) for leaf in leaves]}
        self._note("constant", (call[0], (), None, call[3]), leaves, more)

    def module(self, call: Any, module: torch.nn.Module, args: Any, kwargs: Any) -> Any:
        """Call an outermost module and write it down."""
        if self.thread != threading.get_ident() or tracing_state() is not None:
            return call(module, *args, **kwargs)
        self.take_off()
        self.armed = self.bare = False
        try:
            place = place_of(_frame(2))
            packed, named = self._pack_all(args), self._pack(kwargs) if kwargs else None
            draws = self._generators.before(module)
            more = {"draws": draws, "training": module.training}
            result = call(module, *args, **kwargs)
            if draws.seen is not None:
                more["draws"] = self._generators.after(module, draws)
            leaves = [result] if type(result) is _Tensor else list(tensors_in(result))
            self._note("module", (module, packed, named, place), leaves, more)
        finally:
            self.armed = True
            self.put_on()
        return result

    def listens_here(self) -> bool:
        """Whether calls of this thread are written down now."""
        return self.armed and self.thread == threading.get_ident()

    def function(self, again: Any, call: Any, args: Any, kwargs: Any) -> object:
        """Call a custom autograd function outside modules and write it down."""
        was_on = self.take_off()
        self.armed = False
        try:
            place = place_of(_frame(2))
            packed, named = self._pack_all(args), self._pack(kwargs)
            more = {"draws": self._generators.now()}
            result = call(*args, **kwargs)
            leaves = list(tensors_in(result))
            if leaves:
                self._keep_drawn((again, packed, named, place), leaves, more)
        finally:
            self.armed = True
            if was_on:
                self.put_on()
        return result

    def backward(self, roots: Any, grads: Any, inputs: Any) -> None:
        """`backward` is called: write it down, and rest until the next module call."""
        self.take_off()
        packed = self._pack_all(roots)
        losses = [_figure_of(root) for root in roots]
        more: dict[str, Any] = {"losses": losses}
        if len(losses) != 1 or type(losses[0]) is not float or not math.isfinite(losses[0]):
            self._doubtful.append((self.clock, losses))
        for mark, root in zip(packed, roots, strict=True):
            if type(mark) is OutsideTensor:
                more["chain"] = chain_of(root)
                self.stays = True
        args = (packed, self._pack(grads), self._pack(inputs))
        self._note("backward", (None, args, None, place_of(_frame(2))), [], more)

    def _note(self, kind: str, call: Call, leaves: list[torch.Tensor], more: object = None) -> None:
        made = self._made
        marks = []
        for leaf in leaves:
            mark = made[id(leaf)] = _mark_of(leaf)
            marks.append(mark)
        cast = _autocast_now() if casts() else None
        self.notes.append((kind, *call, self.clock, _records_graph(), cast, marks, more))
        if len(self.notes) > MOST_NOTES or self._bytes > MOST_BYTES:
            self._forget_oldest()

    # -- what a step stands on -----------------------------------------------------------------

    def lost(self, optimizer: object) -> bool:
        """Whether a loss on which this optimizer's next step depends is not finite."""
        mark = self._marks.get(id(optimizer), 0)
        doubtful = self._doubtful
        return bool(doubtful) and any(c >= mark and not _finite(losses) for c, losses in doubtful)

    def backwards_of(self, optimizer: object) -> list[TapeEntry]:
        """The backward entries whose gradients this optimizer is about to apply.

        Where losses are not finite, only those.
        """
        mark = self._marks.get(id(optimizer), 0)
        entries = [e for e in self.entries if e.clock >= mark]
        backwards = [e for e in entries if e.kind == "backward"] or _gradients_by_hand(entries)
        return [e for e in backwards if not _finite(e.losses)] or backwards

    # -- forgetting ------------------------------------------------------------------------

    def stepped(self, optimizer: object) -> None:
        """An optimizer has stepped: forget what no optimizer's next step can need."""
        marks, clock = self._marks, self.clock + 1
        stepped_at, self.clock = self.clock, clock
        marks[id(optimizer)] = clock
        if len(marks) == 1:  # the only one: nobody waits for anything
            self.clear()
            return
        self.steps = [(c, ref) for c, ref in self.steps if ref() is not None][-STALE:]
        self.steps.append((stepped_at, weakref.ref(optimizer)))
        others = [mark for key, mark in marks.items() if key != id(optimizer)]
        self._forget_before(min((m for m in others if m > clock - STALE), default=clock))

    def clear(self) -> None:
        """Forget everything."""
        self.notes, self._doubtful, self._made, self._outside = [], [], {}, {}
        self._entries, self._bytes, self.bare = [], 0, True

    def _forget_before(self, clock: int) -> None:
        if clock >= self.clock:
            self.clear()
            return
        self._keep_only([note for note in self.notes if note[5] >= clock])
        self._doubtful = [(c, losses) for c, losses in self._doubtful if c >= clock]

    def _forget_oldest(self) -> None:
        self._keep_only(self.notes[len(self.notes) // 2 + 1 :])

    def _keep_only(self, notes: list[Note]) -> None:
        self.notes, self._entries = notes, []
        alive = ((mark(), mark) for note in notes for mark in marks_of(note))
        self._made = {id(tensor): mark for tensor, mark in alive if tensor is not None}
        self._outside, self._bytes = {}, 0  # the notes hold what they need

    # -- arguments ---------------------------------------------------------------------------

    def _keep_before(self, target: torch.Tensor) -> None:
        """A tensor from outside is about to be changed in place: keep a copy of it."""
        packed = self._pack(target)
        if type(packed) is not OutsideTensor:
            packed = self._constant_of(packed)
        if packed is not None and not isinstance(target, torch.nn.Parameter):
            packed.keep_copy()

    def _constant_of(self, mark: Mark) -> OutsideTensor | None:
        """The value that is kept of a tensor whose last maker on the tape was no function."""
        for note in reversed(self.notes):
            for leaf, made in enumerate(marks_of(note)):
                if made is mark:
                    return note[9]["value"][leaf] if note[0] == "constant" else None
        return None

    def _pack_all(self, args: Any) -> Any:
        """Arguments as they are noted."""
        made, packed = self._made, []
        for item in args:
            kind = type(item)
            if kind is _Tensor or kind is _Parameter:
                self._entered += 1
                mark = made.get(id(item))
                packed.append(self._hold(item) if mark is None or mark() is not item else mark)
            else:
                packed.append(item if kind in _SIMPLE else self._pack(item))
        return tuple(packed)

    def _pack(self, value: Any) -> Any:
        kind = type(value)
        if kind in _SIMPLE:
            return value
        if kind is _Tensor or issubclass(kind, _Tensor):
            self._entered += 1
            mark = self._made.get(id(value))
            return self._hold(value) if mark is None or mark() is not value else mark
        if kind is tuple:
            return self._pack_all(value)
        if kind is list:
            return [self._pack(item) for item in value]
        if kind is dict:
            return {key: self._pack(item) for key, item in value.items()}
        if isinstance(value, tuple) and kind is not torch.Size:
            return Rebuilt(value, [self._pack(item) for item in value])
        if isinstance(value, dict):
            return Rebuilt(value, {key: self._pack(item) for key, item in value.items()})
        return value

    def _hold(self, value: torch.Tensor) -> OutsideTensor:
        outside = self._outside.get(id(value))
        if outside is not None and outside.value is value and not outside.changed:
            return outside
        outside = self._outside[id(value)] = OutsideTensor(value)
        if type(value) is _Tensor:
            self._bytes += value.nbytes if value.layout is torch.strided else 0
        return outside


_SIMPLE = frozenset(
    [type(None), bool, int, float, str, slice, torch.dtype, torch.device, type(Ellipsis)]
)


def _gradients_by_hand(entries: list[TapeEntry]) -> list[TapeEntry]:
    """Calls of `autograd.grad` where there is no `backward`: turned into what those would be."""
    calls = [e for e in entries if e.kind == "operation" and e.func is torch.autograd.grad]
    for entry in calls:
        arguments = dict(zip(("outputs", "inputs", "grad_outputs"), entry.args, strict=False))
        arguments.update(entry.kwargs or {})
        roots, grads = arguments["outputs"], arguments.get("grad_outputs")
        entry.kind, entry.kwargs = "backward", None
        entry.args = (
            _listed(roots),
            None if grads is None else _listed(grads),
            arguments["inputs"],
        )
    return calls


def _listed(value: object) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _leaves_of(func: Any, args: Any, result: Any) -> list[torch.Tensor]:
    leaves = list(tensors_in(result))
    return leaves or ([args[0]] if getattr(func, "__name__", "") == "__setitem__" else [])


def _learn_from(func: object, result: object) -> None:
    """A function that returns no tensor is not written down again."""
    empty = isinstance(result, (tuple, list, dict)) and not isinstance(result, torch.Size)
    if result is not None and not empty:
        kinds.kind_by_function[func] = kinds.PLAIN


def _figure_of(root: torch.Tensor) -> Any:
    """A loss, without its graph: as a number, unless a device would have to be waited for."""
    number = native.try_number(root)
    if number is not None:
        return number
    single = type(root) is _Tensor and root.numel() == 1 and root.device.type == "cpu"
    return root.item() if single and not root.is_complex() else root.detach()


def _finite(losses: Sequence[Any]) -> bool:
    return all(
        bool(torch.isfinite(loss).all()) if isinstance(loss, _Tensor) else math.isfinite(loss)
        for loss in losses
    )


def _autocast_now() -> tuple[tuple[str, torch.dtype], ...]:
    """Devices with autocast on, and its dtype."""
    devices = [d for d in ("cpu", "cuda") if torch.is_autocast_enabled(d)]
    return tuple((device, torch.get_autocast_dtype(device)) for device in devices)


def _updates_a_weight(args: Any) -> bool:
    first = args[0] if args else None
    weight = isinstance(first, torch.Tensor) and first.is_leaf and first.requires_grad
    return weight and not torch.is_grad_enabled()


def _is_default_device() -> bool:
    context = default_device_mode()
    return context is not None and mode_at(0) is context
