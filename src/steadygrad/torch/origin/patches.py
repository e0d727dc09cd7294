"""The places in torch from which the tape is told: patched while somebody looks for origins.

`Module.__call__` is patched on the class, since hooks would stay in copies and pickles of a
model, and global hooks make every inner call slow. What stands there does torch's own two lines
after one look at a flag, so that an inner call has no frame more than without. Loaders and
`zero_grad` are passed over: a hundred operations of no interest.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch.amp.grad_scaler import GradScaler

from steadygrad.invisible import invisible
from steadygrad.torch.internals import private, sites
from steadygrad.torch.internals.inlay import Arguments, Visit
from steadygrad.torch.internals.patches import PatchSet
from steadygrad.torch.internals.transforms import TRANSFORMS
from steadygrad.torch.origin.tape import Tape

_tape: Tape | None = None


def _make(patches: PatchSet) -> None:
    global _tape
    _tape = Tape()
    _patch(_tape, patches)


def _undone() -> None:
    global _tape
    if _tape is not None:
        _tape.rest()
        _tape.clear()
        _tape = None


_listening = PatchSet(_make, _undone)


def listen(owner: object) -> Tape:
    """Begin to keep a tape, until `forget` or until the owner is gone.

    Args:
        owner: who looks for origins; held weakly. All share one tape.

    Returns:
        The tape.
    """
    _listening.hold(owner)
    assert _tape is not None
    return _tape


def forget(owner: object) -> None:
    """End what `listen` began; after the last owner, torch's functions are as before."""
    _listening.release(owner)


def _patch(tape: Tape, patches: PatchSet) -> None:
    loader = private.loader_iterator()
    optimizer: Any = torch.optim.Optimizer
    replace = patches.replace
    replace(torch.nn.Module, "__call__", _module_call(torch.nn.Module.__call__, tape))
    apply = vars(torch.autograd.Function)["apply"]
    apply = getattr(apply, "__func__", apply)  # torch 2.14's is written in C, and has none
    replace(torch.autograd.Function, "apply", classmethod(_function_apply(apply, tape)))
    replace(torch.Tensor, "backward", _unheard(torch.Tensor.backward, tape, ends=True))
    patches.add(sites.BACKWARD.listen(_backward_of(tape)))
    replace(optimizer, "zero_grad", _unheard(optimizer.zero_grad, tape))
    replace(optimizer, "__init__", _begins(optimizer.__init__, tape))
    replace(torch.nn.Module, "zero_grad", _unheard(torch.nn.Module.zero_grad, tape))
    replace(GradScaler, "step", _unheard(GradScaler.step, tape))
    replace(GradScaler, "update", _unheard(GradScaler.update, tape))
    replace(loader, "__next__", _unheard(loader.__next__, tape))
    for owner, name in TRANSFORMS:
        if name in vars(owner):
            replace(owner, name, _transform(vars(owner)[name], tape))


def _module_call(original: Callable[..., Any], tape: Tape) -> Callable[..., object]:
    # neither is invisible: torch.compile must be able to look through it
    if original is private.MODULE_CALL:

        @functools.wraps(original)
        def instead(self: Any, *args: Any, **kwargs: Any) -> object:
            if tape.armed and not torch.compiler.is_dynamo_compiling():
                return tape.module(original, self, args, kwargs)
            if self._compiled_call_impl is not None:
                return self._compiled_call_impl(*args, **kwargs)
            return self._call_impl(*args, **kwargs)

        return instead

    @functools.wraps(original)
    def call(self: torch.nn.Module, *args: object, **kwargs: object) -> Any:
        if not tape.armed or torch.compiler.is_dynamo_compiling():
            return original(self, *args, **kwargs)
        return tape.module(original, self, args, kwargs)

    return call


def _function_apply(original: Callable[..., Any], tape: Tape) -> Callable[..., object]:
    @functools.wraps(original)
    def apply(cls: Any, *args: Any, **kwargs: Any) -> object:
        if torch.compiler.is_dynamo_compiling():
            return original(cls, *args, **kwargs)
        watch = watching[0]
        if watch is not None:
            return watch.custom(functools.partial(original, cls), cls, args, kwargs)
        if not tape.listens_here():
            return original(cls, *args, **kwargs)
        return tape.function(cls.apply, functools.partial(original, cls), args, kwargs)

    return apply


def _transform(original: Callable[..., object], tape: Tape) -> Callable[..., Any]:
    """Write down a transform as a whole: what it calls, it calls in a world of its own."""

    # not invisible, as above
    @functools.wraps(original)
    def call(*args: object, **kwargs: object) -> Any:
        if torch.compiler.is_dynamo_compiling() or not tape.listens_here():
            return original(*args, **kwargs)
        return tape.function(original, original, args, kwargs)

    return call


class _TapedBackward(Visit):
    """One `backward` of the training, which the tape does not hear from inside."""

    def __init__(self, arguments: Arguments, tape: Tape) -> None:
        self.arguments, self._tape = arguments, tape
        tape.armed = False

    def ends(self) -> None:
        self._tape.armed = True


def _backward_of(tape: Tape) -> Callable[[tuple[object, ...]], Visit | None]:
    names = sites.BACKWARD.parameters
    at_roots, at_grads, at_inputs = map(names.index, ("tensors", "grad_tensors", "inputs"))

    def begins(arguments: Arguments) -> Visit | None:
        # one inside another is none of the training's
        if not tape.listens_here() or private.graph_task() != -1:
            return None
        roots, grads, inputs = arguments[at_roots], arguments[at_grads], arguments[at_inputs]
        if not isinstance(roots, (torch.Tensor, tuple, list)):
            return None
        tape.backward(
            sites.listed(roots),
            None if grads is None else sites.listed(grads),
            None if inputs is None else sites.listed(inputs),
        )
        return _TapedBackward(arguments, tape)

    return begins


def _unheard(original: Callable[..., object], tape: Tape, ends: bool = False) -> Callable[..., Any]:
    """Run without the tape on the stack; afterwards too, where it ends a forward pass."""

    @functools.wraps(original)
    @invisible
    def call(*args: object, **kwargs: object) -> Any:
        if not tape.listens_here():
            return original(*args, **kwargs)
        was_on = tape.take_off()
        try:
            return original(*args, **kwargs)
        finally:
            if was_on and (not ends or tape.bare or tape.stays):
                tape.put_on()

    return call


def _begins(original: Callable[..., object], tape: Tape) -> Callable[..., Any]:
    """Listen to operations too, once there is an optimizer: a loop may call no module."""

    @functools.wraps(original)
    @invisible
    def init(*args: object, **kwargs: object) -> None:
        original(*args, **kwargs)
        if tape.listens_here() and not tape.entries:
            tape.listen()

    return init


watching: list[Any] = [None]
"""The replay under way, which custom autograd functions report to."""
