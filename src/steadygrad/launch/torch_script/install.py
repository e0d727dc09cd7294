"""Patch torch, once the script has imported it, so that its training is seen.

Five places are patched: `torch.autograd.backward` (which `Tensor.backward` calls), the
clip functions in `torch.nn.utils` and its `clip_grad` module, `GradScaler`, and the global
hook before every optimizer's step. Nothing of ours beyond this file is loaded until one
of them is used. The wrappers are invisible to `warnings` and to uncaught tracebacks,
so that both still name the script's own lines.
"""

from __future__ import annotations

import functools
import os
import types
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

from steadygrad.invisible import invisible

if TYPE_CHECKING:
    from steadygrad.launch.session import Session
    from steadygrad.launch.torch_script.observer import TorchObserver


class Patches:
    """The patches of one process; makes the observer at their first use.

    Args:
        session: the run.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._observer: TorchObserver | None = None
        self._failed = False
        self._inside_clip = False
        self._pid = os.getpid()

    def observer(self) -> TorchObserver | None:
        """The observer, or None where it could not be made."""
        if self._pid != os.getpid():
            self._begin_anew()
        if self._observer is None and not self._failed:
            from steadygrad.launch.torch_script.observer import TorchObserver
            from steadygrad.torch.origin.patches import forget

            try:
                self._observer = TorchObserver(self._session)
                if self._session.plan.find_nan:
                    self._observer.find_nan()
                    forget(self)  # the observer listens in our place
            except Exception as error:
                self._failed = True
                self._session.trouble("torch is not observed", error)
        return self._observer

    def _begin_anew(self) -> None:
        # a forked child that trains: what was attached belongs to the parent's run file
        self._pid = os.getpid()
        if self._observer is not None:
            self._observer.abandon()
            self._observer = None

    def finish(self) -> None:
        """The script is over."""
        if self._observer is not None and self._pid == os.getpid():
            self._observer.finish()

    @property
    def steps(self) -> int:
        """Optimizer steps seen so far."""
        return self._observer.steps if self._observer is not None else 0

    @property
    def backwards(self) -> int:
        """Backward passes seen so far."""
        return self._observer.losses.backwards if self._observer is not None else 0

    def kept_elsewhere(self, parameters: list[torch.Tensor]) -> float:
        """Keras has stepped on these, and its own observer keeps that step; returns its loss."""
        observer = self.observer()
        return float("nan") if observer is None else observer.kept_elsewhere(parameters)

    # -- what the patched functions call -------------------------------------------------------

    def backward_begins(
        self, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> TorchObserver | None:
        """Returns the observer to tell at the end; None inside another backward."""
        if torch._C._current_graph_task_id() != -1:  # re-entrant checkpointing
            return None
        observer = self.observer()
        if observer is not None:
            roots = args[0] if args else kwargs.get("tensors", ())
            weights = args[1] if len(args) > 1 else kwargs.get("grad_tensors")
            observer.before_backward(
                _sequence(roots), None if weights is None else _sequence(weights)
            )
        return observer

    def step_begins(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        """The hook before every optimizer's step."""
        observer = self.observer()
        if observer is not None:
            observer.before_step(
                optimizer, kwargs.get("closure", args[1] if len(args) > 1 else None)
            )

    def clip_begins(self, call: Call) -> Call:
        """Read what a clip call is about to change."""
        observer = self.observer()
        if observer is None or self._inside_clip:
            return call
        self._inside_clip = True
        call.materialise()
        if observer.replaces:
            call.replaced = True
        else:
            call.note = observer.before_clip(call)
        call.outermost = True
        return call

    def instead(self, call: Call) -> Any:
        """Do our policy's work where a clip call is replaced; returns what torch would have."""
        norm = call.norm_before()
        if self._observer is not None and call.outermost:
            self._observer.instead_of_clip(call.parameters)
        return norm

    def clip_ends(self, call: Call, result: Any) -> None:
        """Note what a clip call has done; ``result`` is torch's norm, or None."""
        if call.outermost:
            self._inside_clip = False
            if self._observer is not None and call.note is not None:
                self._observer.after_clip(call, result)


class Call:
    """The arguments of one call of a clip function, whichever way they were given."""

    def __init__(self, kind: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.kind, self.args, self.kwargs = kind, args, kwargs
        self.parameters: list[Any] = []
        self.note: Any = None
        self.replaced = False
        self.outermost = False

    def materialise(self) -> None:
        """List the parameters, and leave an iterator of the same kind for torch."""
        given = self.args[0] if self.args else self.kwargs.get("parameters", ())
        self.parameters = [given] if isinstance(given, torch.Tensor) else list(given)
        if isinstance(given, torch.Tensor):
            return
        # torch warns of an exhausted generator, and of nothing else
        again: Any = list(self.parameters)
        again = (p for p in again) if isinstance(given, types.GeneratorType) else again
        if self.args:
            self.args = (again, *self.args[1:])
        else:
            self.kwargs = {**self.kwargs, "parameters": again}

    def argument(self, place: int, name: str, default: Any = None) -> Any:
        """One argument, by place or by name."""
        return self.args[place] if len(self.args) > place else self.kwargs.get(name, default)

    @property
    def norm_type(self) -> float:
        """The p of the call; 2 for what cannot be measured."""
        given = self.argument(2, "norm_type", 2.0) if self.kind == "norm" else 2.0
        p = float(given)
        return p if p >= 0.5 else 2.0

    @property
    def limit(self) -> Any:
        """Its threshold."""
        return self.argument(1, "clip_value" if self.kind == "value" else "max_norm")

    @property
    def total_norm(self) -> Any:
        """The norm that the script hands to ``clip_grads_with_norm_``."""
        return self.argument(2, "total_norm")

    def norm_before(self) -> Any:
        """What a replaced call returns: the norm before clipping, as torch computes it."""
        if self.kind != "norm":
            return None
        grads = [p.grad for p in self.parameters if p.grad is not None]
        return torch.nn.utils.get_total_norm(
            grads,
            self.argument(2, "norm_type", 2.0),
            self.argument(3, "error_if_nonfinite", False),
            self.argument(4, "foreach"),
        )


def install(session: Session) -> Patches:
    """Patch torch for this process.

    Args:
        session: the run.

    Returns:
        The patches, which the session ends.
    """
    patches = Patches(session)
    if session.plan.find_nan:
        from steadygrad.torch.origin.patches import listen

        # from before the model is made: the first step may be the one that breaks
        listen(patches).armed = True
    torch.autograd.backward = _watch_backward(torch.autograd.backward, patches)
    for name, kind in (
        ("clip_grad_norm_", "norm"),
        ("clip_grads_with_norm_", "given norm"),
        ("clip_grad_value_", "value"),
    ):
        _patch_clip(name, kind, patches)
    _patch_scaler(torch.amp.grad_scaler.GradScaler, patches)
    register_optimizer_step_pre_hook(patches.step_begins)
    return patches


def _patch_clip(name: str, kind: str, patches: Patches) -> None:
    utils = torch.nn.utils
    original = getattr(utils, name, None)
    if original is None:  # torch before 2.6 has no clip_grads_with_norm_
        return
    wrapped = _watch_clip(original, kind, patches)
    setattr(utils, name, wrapped)
    if hasattr(utils.clip_grad, name):
        setattr(utils.clip_grad, name, wrapped)


def _watch_backward(original: Callable[..., Any], patches: Patches) -> Callable[..., Any]:
    @functools.wraps(original)
    @invisible
    def backward(*args: Any, **kwargs: Any) -> Any:
        observer = patches.backward_begins(args, kwargs)
        result = original(*args, **kwargs)
        if observer is not None:
            observer.after_backward()
        return result

    return backward


def _watch_clip(original: Callable[..., Any], kind: str, patches: Patches) -> Callable[..., Any]:
    @functools.wraps(original)
    @invisible
    def clip(*args: Any, **kwargs: Any) -> Any:
        call = patches.clip_begins(Call(kind, args, kwargs))
        result = None
        try:
            replaced = call.replaced
            result = patches.instead(call) if replaced else original(*call.args, **call.kwargs)
        finally:
            patches.clip_ends(call, result)
        return result

    return clip


def _patch_scaler(scaler: Any, patches: Patches) -> None:
    scale, unscale_, step = scaler.scale, scaler.unscale_, scaler.step

    @functools.wraps(scale)
    @invisible
    def scale_and_note(self: Any, outputs: Any) -> Any:
        scaled = scale(self, outputs)
        observer = patches.observer()
        if observer is not None and self.is_enabled():
            observer.losses.scaled(scaled, self._scale)
        return scaled

    @functools.wraps(unscale_)
    @invisible
    def unscale_and_note(self: Any, optimizer: Any) -> Any:
        observer = patches.observer()
        if observer is None or not self.is_enabled():
            return unscale_(self, optimizer)
        return observer.unscale(optimizer, lambda: unscale_(self, optimizer))

    @functools.wraps(step)
    @invisible
    def step_attached(self: Any, optimizer: Any, *args: Any, **kwargs: Any) -> Any:
        # a scaler does not call the step of an optimizer whose gradients overflow
        observer = patches.observer()
        if observer is not None and self.is_enabled() and observer.before_scaler(optimizer):
            return scaler.step(self, optimizer, *args, **kwargs)
        return step(self, optimizer, *args, **kwargs)

    scaler.scale, scaler.unscale_, scaler.step = scale_and_note, unscale_and_note, step_attached


def _sequence(given: Any) -> Any:
    return [given] if isinstance(given, torch.Tensor) else given if given is None else list(given)
