"""The places in torch from which the tape is told: patched while somebody looks for origins.

`Module.__call__` is patched on the class, since hooks would stay in copies and pickles of a
model, and global hooks make every inner call slow. What stands there does torch's own two lines
after one look at a flag, so that an inner call has no frame more than without. Loaders and
`zero_grad` are passed over: a hundred operations of no interest.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable
from typing import Any

import torch
import torch._functorch.apis
import torch._functorch.eager_transforms
import torch.nn.utils.stateless
from torch.amp.grad_scaler import GradScaler

from steadygrad.invisible import invisible
from steadygrad.torch.origin.tape import Tape

_tape: Tape | None = None
_owners: weakref.WeakSet[Any] = weakref.WeakSet()
_undo: list[Callable[[], bool]] = []


def listen(owner: object) -> Tape:
    """Begin to keep a tape, until `forget` or the end of the owner.

    Args:
        owner: who looks for origins; held weakly. All share one tape.

    Returns:
        The tape.
    """
    global _tape
    if _tape is None:
        _tape = Tape()
        _patch(_tape)
    if owner not in _owners:
        # in this order: the last callback made is called first, and takes the owner out
        weakref.finalize(owner, _release).atexit = False
        _owners.add(owner)
    return _tape


def forget(owner: object) -> None:
    """Undo `listen`; with the last owner, torch is as it was."""
    _owners.discard(owner)
    _release()


def _release() -> None:
    global _tape
    if _tape is None or _owners:
        return
    _tape.rest()
    _tape.clear()
    # where somebody has wrapped ours since, taking it out would take theirs out too
    _undo[:] = [undo for undo in reversed(_undo) if not undo()][::-1]
    _tape = None


def _patch(tape: Tape) -> None:
    loader: Any = torch.utils.data.dataloader._BaseDataLoaderIter
    optimizer: Any = torch.optim.Optimizer
    _replace(torch.nn.Module, "__call__", _module_call(torch.nn.Module.__call__, tape))
    apply = vars(torch.autograd.Function)["apply"]
    _replace(torch.autograd.Function, "apply", classmethod(_function_apply(apply.__func__, tape)))
    _replace(torch.Tensor, "backward", _unheard(torch.Tensor.backward, tape, ends=True))
    _replace(torch.autograd, "backward", _backward(torch.autograd.backward, tape))
    _replace(optimizer, "zero_grad", _unheard(optimizer.zero_grad, tape))
    _replace(optimizer, "__init__", _begins(optimizer.__init__, tape))
    _replace(torch.nn.Module, "zero_grad", _unheard(torch.nn.Module.zero_grad, tape))
    _replace(GradScaler, "step", _unheard(GradScaler.step, tape))
    _replace(GradScaler, "update", _unheard(GradScaler.update, tape))
    _replace(loader, "__next__", _unheard(loader.__next__, tape))
    for owner, name in _TRANSFORMS:
        if name in vars(owner):
            _replace(owner, name, _transform(vars(owner)[name], tape))


def _replace(owner: Any, name: str, patched: Any) -> None:
    original = vars(owner)[name]
    setattr(owner, name, patched)

    def undo() -> bool:
        if vars(owner)[name] is not patched:
            return False
        setattr(owner, name, original)
        return True

    _undo.append(undo)


def _module_call(original: Callable[..., Any], tape: Tape) -> Callable[..., Any]:
    # neither is invisible: torch.compile must be able to look through it
    if original is torch.nn.Module._wrapped_call_impl:

        @functools.wraps(original)
        def instead(self: Any, *args: Any, **kwargs: Any) -> Any:
            if tape.armed and not torch.compiler.is_dynamo_compiling():
                return tape.module(original, self, args, kwargs)
            if self._compiled_call_impl is not None:
                return self._compiled_call_impl(*args, **kwargs)
            return self._call_impl(*args, **kwargs)

        return instead

    @functools.wraps(original)
    def call(self: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
        if not tape.armed or torch.compiler.is_dynamo_compiling():
            return original(self, *args, **kwargs)
        return tape.module(original, self, args, kwargs)

    return call


def _function_apply(original: Callable[..., Any], tape: Tape) -> Callable[..., Any]:
    @functools.wraps(original)
    def apply(cls: Any, *args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_dynamo_compiling():
            return original(cls, *args, **kwargs)
        watch = watching[0]
        if watch is not None:
            return watch.custom(functools.partial(original, cls), cls, args, kwargs)
        if not tape.listens_here():
            return original(cls, *args, **kwargs)
        return tape.function(cls.apply, functools.partial(original, cls), args, kwargs)

    return apply


def _transform(original: Callable[..., Any], tape: Tape) -> Callable[..., Any]:
    """Write down a transform as a whole: what it calls, it calls in a world of its own."""

    # not invisible, as above
    @functools.wraps(original)
    def call(*args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_dynamo_compiling() or not tape.listens_here():
            return original(*args, **kwargs)
        return tape.function(original, original, args, kwargs)

    return call


_TRANSFORMS: tuple[tuple[Any, str], ...] = (
    (torch._functorch.apis, "vmap_impl"),
    (torch._functorch.eager_transforms, "grad_impl"),
    (torch._functorch.eager_transforms, "grad_and_value_impl"),
    (torch.nn.utils.stateless, "_functional_call"),
)


def _backward(original: Callable[..., Any], tape: Tape) -> Callable[..., Any]:
    @functools.wraps(original)
    @invisible
    def backward(*args: Any, **kwargs: Any) -> Any:
        if not tape.hears_backward():
            return original(*args, **kwargs)
        given = list(args) + [None] * 6
        roots = _listed(given[0] if args else kwargs.get("tensors", ()))
        grads = _listed(given[1] if len(args) > 1 else kwargs.get("grad_tensors"))
        tape.backward(roots, grads, _listed(kwargs.get("inputs")))
        armed, tape.armed = tape.armed, False
        try:
            return original(*args, **kwargs)
        finally:
            tape.armed = armed

    return backward


def _unheard(original: Callable[..., Any], tape: Tape, ends: bool = False) -> Callable[..., Any]:
    """Run without the tape on the stack; afterwards too, where it ends a forward pass."""

    @functools.wraps(original)
    @invisible
    def call(*args: Any, **kwargs: Any) -> Any:
        if not tape.listens_here():
            return original(*args, **kwargs)
        was_on = tape.take_off()
        try:
            return original(*args, **kwargs)
        finally:
            if was_on and (not ends or tape.bare or tape.stays):
                tape.put_on()

    return call


def _begins(original: Callable[..., Any], tape: Tape) -> Callable[..., Any]:
    """Listen to operations too, once there is an optimizer: a loop may call no module."""

    @functools.wraps(original)
    @invisible
    def init(*args: Any, **kwargs: Any) -> None:
        original(*args, **kwargs)
        if tape.listens_here() and not tape.entries:
            tape.listen()

    return init


def _listed(given: Any) -> Any:
    if given is None:
        return None
    return [given] if isinstance(given, torch.Tensor) else list(given)


watching: list[Any] = [None]
"""The replay under way, which custom autograd functions report to."""
