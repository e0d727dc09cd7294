"""Run a step again, from the tape, with instruments, and leave the training as it is.

Parameters are still those of the step, since this runs before the optimizer's. Gradients
are computed by `torch.autograd.grad`, so that no `.grad` is touched and no hook that
accumulates or communicates fires.
"""

from __future__ import annotations

import contextlib
import copy
import io
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.modules import module as hooks

from steadygrad.torch.internals.transforms import TorchDispatchMode
from steadygrad.torch.internals.warn import without_warnings
from steadygrad.torch.origin.entries import (
    OutsideTensor,
    Rebuilt,
    TapeEntry,
    Use,
    parts_of,
    tensors_in,
)
from steadygrad.torch.origin.kinds import changes_its_argument
from steadygrad.torch.origin.patches import watching
from steadygrad.torch.origin.probe import BackwardProbe, BrokenCall, Note, Probe
from steadygrad.torch.origin.states import generators_kept, modules_kept, set_draws, set_modules
from steadygrad.torch.origin.tape import Tape


class Impossible(Exception):
    """The step cannot be replayed; says why."""


@dataclass
class Story:
    """What a replay showed.

    Attributes:
        forward: the call that made the loss non-finite; None where the loss is finite.
        events: what went wrong in the backward pass, in order.
        notes: every call.
    """

    forward: Note | None
    events: list[BrokenCall]
    notes: list[Note]


class BackwardReplay:
    """One `backward` of a step, and everything that led to it.

    Args:
        tape: where it was written down.
        last: the entry of the backward.

    Attributes:
        entries: the calls that it depends on, in order.
        roots: the outermost modules among them.
    """

    def __init__(self, tape: Tape, last: TapeEntry) -> None:
        self._last = last
        self._tape = tape
        self.entries = _needed(tape.entries, last)
        self._values: dict[int, list[torch.Tensor]] = {}
        self._fresh: dict[int, torch.Tensor] = {}
        self.roots = [module for entry in self.entries for module in _modules_of(entry)]

    def run(self) -> Story:
        """Replay it.

        Raises:
            Impossible: it cannot be replayed.
        """
        self._require_possible()
        probe = Probe(_called.__code__)
        with _undisturbed(self.roots), _watched(probe, self._labels()):
            probe.names_by_id = self._names()
            for entry in self.entries:
                self._do(entry, probe)
            return self._judge(probe)

    def losses(self) -> list[torch.Tensor]:
        """What the backward starts from, computed with the weights of now.

        Raises:
            Impossible: it cannot be replayed.
        """
        self._require_possible()
        probe = Probe(_called.__code__)
        with _undisturbed(self.roots):
            for entry in self.entries:
                self._do(entry, probe)
            return [root.detach() for root in self._unpacked(self._last.args[0])]

    def _judge(self, probe: Probe) -> Story:
        roots, grads = self._unpacked(self._last.args[0]), self._unpacked(self._last.args[1])
        makers = [note for note in map(probe.maker_of, roots) if note is not None]
        if not makers:
            probe.base = self._last.place
            self._backward(probe, roots, grads)
        return Story(makers[0] if makers else None, probe.events, probe.notes)

    def _backward(self, probe: Probe, roots: list[torch.Tensor], grads: Any) -> None:
        pairs = zip(roots, grads or [None] * len(roots), strict=True)
        used = [(root, grad) for root, grad in pairs if root.requires_grad]
        nodes, leaves = _graph([root for root, _ in used])
        if not leaves:
            return
        probe.watch_backward(nodes)
        starts, weights = [root for root, _ in used], [grad for _, grad in used]
        with BackwardProbe(probe):
            _called(torch.autograd.grad, (starts, leaves, weights), {"allow_unused": True})

    # -- one entry -------------------------------------------------------------------------

    def _do(self, entry: TapeEntry, probe: Probe) -> None:
        if entry.kind == "constant":
            self._values[id(entry)] = [self._own_tensor(outside) for outside in entry.value]
            return
        args, kwargs = self._unpacked(entry.args), self._unpacked(entry.kwargs or {})
        target = entry.func
        if entry.draws is not None:
            set_draws(entry.draws)
            set_modules(entry.draws)
        if entry.kind == "module":
            target = _eager(target)
            if target.training != entry.training:
                target.train(entry.training)
        probe.base = entry.place
        with _circumstances(entry), probe:
            result = _called(target, args, kwargs)
        leaves = list(tensors_in(result))
        if getattr(target, "__name__", "") == "__setitem__":
            leaves = [args[0]]
        self._values[id(entry)] = leaves
        probe.returned(leaves)

    def _unpacked(self, value: Any) -> Any:
        if isinstance(value, Use):
            return self._value(value)
        if isinstance(value, OutsideTensor):
            return self._own_tensor(value)
        if type(value) is tuple:
            return tuple(self._unpacked(item) for item in value)
        if type(value) is list:
            return [self._unpacked(item) for item in value]
        if type(value) is dict:
            return {key: self._unpacked(item) for key, item in value.items()}
        return self._rebuilt(value) if isinstance(value, Rebuilt) else value

    def _value(self, use: Use) -> torch.Tensor:
        leaves = self._values.get(id(use.entry))
        if leaves is None or use.leaf >= len(leaves):
            raise Impossible("an earlier part of the step is no longer kept")
        return leaves[use.leaf]

    def _own_tensor(self, outside: OutsideTensor) -> torch.Tensor:
        if outside.changed:
            shape = tuple(outside.value.shape)
            raise Impossible(f"a tensor of shape {shape} was changed in place after it was used")
        if not outside.was_graph and not outside.copied:
            return outside.value
        if id(outside) not in self._fresh:  # a copy will be changed in place, as the original was
            fresh = outside.value.clone() if outside.copied else outside.value.detach()
            self._fresh[id(outside)] = fresh.requires_grad_() if outside.was_graph else fresh
        return self._fresh[id(outside)]

    def _rebuilt(self, value: Rebuilt) -> object:
        if isinstance(value.like, tuple):
            return tuple.__new__(type(value.like), [self._unpacked(item) for item in value.items])
        made = copy.copy(value.like)
        for key, item in value.items.items():
            made[key] = self._unpacked(item)
        return made

    # -- what may stand in the way ---------------------------------------------------------

    def _require_possible(self) -> None:
        if not any(isinstance(part, Use) for part in parts_of(self._last)):
            chain = " <- ".join(self._last.chain)
            raise Impossible(
                "what led to the loss was not seen, for instance because it ran compiled, or in "
                "another thread" + (f"; its backward functions are {chain}" if chain else "")
            )
        for root in self.roots:
            _require_local(root)
        moved = {id(p) for clock, p in self._moved()}
        if moved:
            raise Impossible("another optimizer has changed weights that the step had used")

    def _moved(self) -> Iterator[tuple[int, torch.Tensor]]:
        """Parameters that an optimizer stepped on after the step had used them."""
        steps = [(clock, ref()) for clock, ref in self._tape.steps]
        for entry in self.entries:
            late = [o for clock, o in steps if clock >= entry.clock and o is not None]
            if entry.kind == "module" and late:
                own = {id(p) for p in entry.func.parameters()}
                for optimizer in late:
                    for group in optimizer.param_groups:
                        yield from ((entry.clock, p) for p in group["params"] if id(p) in own)

    # -- names -----------------------------------------------------------------------------

    def _names(self) -> dict[int, str]:
        names: dict[int, str] = {}
        for module, path in self._walk():
            members = {**module._parameters, **module._buffers}
            for name, tensor in members.items():
                if tensor is not None:
                    names.setdefault(id(tensor), f"{path}.{name}" if path else name)
        return names

    def _labels(self) -> dict[int, tuple[str, str]]:
        return {id(m): (path, type(m).__name__) for m, path in self._walk()}

    def _walk(self) -> Iterator[tuple[torch.nn.Module, str]]:
        distinct = {id(root): root for root in self.roots}
        for root in distinct.values():
            inner = _eager(root)
            start = f"{type(inner).__name__}." if len(distinct) > 1 else ""
            for path, module in inner.named_modules():
                yield module, (start + path).rstrip(".")


def _modules_of(entry: TapeEntry) -> list[torch.nn.Module]:
    if entry.kind == "module":
        return [entry.func]
    return [part for part in parts_of(entry) if isinstance(part, torch.nn.Module)]


def _needed(entries: list[TapeEntry], last: TapeEntry) -> list[TapeEntry]:
    """What a backward depends on, in order; and what changed any of it in place."""
    place = {id(entry): number for number, entry in enumerate(entries)}
    needed: set[int] = set()

    def want(entry: TapeEntry) -> None:
        waiting = [entry]
        while waiting:
            one = waiting.pop()
            for part in parts_of(one):
                if isinstance(part, Use) and id(part.entry) not in needed:
                    if part.entry is None or id(part.entry) not in place:
                        raise Impossible("an earlier part of the step is no longer kept")
                    needed.add(id(part.entry))
                    waiting.append(part.entry)

    want(last)
    before = entries[: place[id(last)]]
    for entry in before:
        if entry.kind == "operation" and _changes(entry, needed):
            needed.add(id(entry))
            want(entry)
    return [entry for entry in before if id(entry) in needed]


def _changes(entry: TapeEntry, needed: set[int]) -> bool:
    name = getattr(entry.func, "__name__", "")
    target = entry.args[0] if changes_its_argument(name) and entry.args else None
    return isinstance(target, Use) and id(target.entry) in needed


def _called(function: Any, args: Any, kwargs: Any) -> Any:
    """Calls what is replayed; the probe looks for lines no further out than here."""
    return function(*args, **kwargs)


def _eager(module: torch.nn.Module) -> torch.nn.Module:
    """The module itself, inside wrappers that compile or communicate."""
    while True:
        if hasattr(module, "_orig_mod"):
            module = module._orig_mod  # type: ignore[assignment]
        elif isinstance(module, torch.nn.parallel.DistributedDataParallel):
            module = module.module
        else:
            return module


def _require_local(root: torch.nn.Module) -> None:
    for module in root.modules():
        kind = type(module).__name__
        if isinstance(module, torch.nn.SyncBatchNorm) and several_ranks():
            raise Impossible("SyncBatchNorm talks to other ranks, and a replay runs on one alone")
        if "FullyShardedDataParallel" in kind or kind.startswith("FSDP"):
            raise Impossible("the model is sharded over ranks (FSDP), and a replay runs on one")
        if isinstance(module, torch.nn.DataParallel):
            raise Impossible("DataParallel runs the model in several threads")
    for parameter in root.parameters():
        if type(parameter) not in (torch.Tensor, torch.nn.Parameter):
            kind = type(parameter.data).__name__
            raise Impossible(f"the weights are of the kind {kind}, which may lie on other ranks")


def several_ranks() -> bool:
    """Whether this process trains together with others."""
    distributed = torch.distributed
    ready = distributed.is_available() and distributed.is_initialized()
    return ready and distributed.get_world_size() > 1


def _graph(roots: list[torch.Tensor]) -> tuple[list[Any], list[torch.Tensor]]:
    nodes: dict[Any, None] = {}
    leaves: dict[torch.Tensor, None] = {}
    waiting: list[Any] = [root.grad_fn for root in roots]
    while waiting:
        node = waiting.pop()
        if node is None or node in nodes:
            continue
        leaf = getattr(node, "variable", None)
        if leaf is not None:
            leaves[leaf] = None
            continue
        if node.name() == "CheckpointFunctionBackward":
            raise Impossible(
                "re-entrant checkpointing cannot be replayed: pass use_reentrant=False"
            )
        nodes[node] = None
        waiting += [following for following, _ in node.next_functions]
    return list(nodes), list(leaves)


class _NoCollectives(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Keeps a replay on one rank from waiting for others that never come."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> object:
        if func.namespace in ("c10d", "_c10d_functional", "c10d_functional"):
            raise Impossible(f"the forward pass talks to other ranks ({func.__name__})")
        return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def _circumstances(entry: TapeEntry) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.set_grad_enabled(entry.grad))
        for device, dtype in entry.cast or ():
            stack.enter_context(torch.autocast(device, dtype=dtype))
        yield


@contextlib.contextmanager
def _undisturbed(roots: list[torch.nn.Module]) -> Iterator[None]:
    """Generators, modules, warnings and standard output stay as they are."""
    eager = [_eager(root) for root in roots]
    with contextlib.ExitStack() as stack:
        stack.enter_context(generators_kept())
        stack.enter_context(modules_kept(eager))
        stack.enter_context(without_warnings())
        stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
        if hasattr(torch.compiler, "set_stance") and "torch._dynamo" in sys.modules:
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        if several_ranks():
            stack.enter_context(_NoCollectives())  # type: ignore[no-untyped-call]
        yield


@contextlib.contextmanager
def _watched(probe: Probe, labels: dict[int, tuple[str, str]]) -> Iterator[None]:
    """Tell the probe of modules; other global hooks see nothing of a replay."""

    def enter(module: torch.nn.Module, args: object) -> None:
        probe.modules.append(labels.get(id(module), ("", type(module).__name__)))

    def leave(module: torch.nn.Module, args: object, output: object) -> None:
        probe.leaves_module(args, output)
        probe.modules.pop()

    tables: list[Any] = [hooks._global_forward_pre_hooks, hooks._global_forward_hooks]
    saved = [table.copy() for table in tables]
    for table in tables:
        table.clear()
    handles = [
        hooks.register_module_forward_pre_hook(enter),
        hooks.register_module_forward_hook(leave),
    ]
    watching[0] = probe
    try:
        yield
    finally:
        watching[0] = None
        for handle in handles:
            handle.remove()
        for table, entries in zip(tables, saved, strict=True):
            table.clear()
            table.update(entries)
