"""Making an optimizer's `step` do nothing, bit for bit.

A step pre-hook cannot stop the step that it precedes, but it can hand the step
another `self`: a shadow of the same class and attributes whose groups are empty.
Nothing has to be restored afterwards, whatever the step raises. Every optimizer of
torch is skipped so. For a class that is not torch's this is tried out on a
snapshot first, and so is the second way, which takes the gradients away.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch

from steadygrad.errors import AttachError

Way = Callable[[torch.optim.Optimizer], torch.optim.Optimizer]
"""Prepares a step that does nothing; returns the `self` to run it on."""


def shadow_of(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """A stand-in on which `step` finds no parameters; it shares nothing that a step writes."""
    shadow = object.__new__(type(optimizer))
    shadow.__dict__.update(optimizer.__dict__)
    shadow.__dict__.pop("step", None)  # a scheduler's wrapper, bound to the original
    shadow.param_groups = [{**group, "params": []} for group in optimizer.param_groups]
    shadow.state = defaultdict(dict)
    if isinstance(optimizer, torch.optim.LBFGS):  # which keeps its parameters apart
        shadow._params = [torch.zeros(1)]  # type: ignore[attr-defined]
        shadow._numel_cache = None  # type: ignore[attr-defined]
    return shadow


def without_gradients(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """The optimizer itself, its gradients taken away; the caller restores them."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = None
    return optimizer


class Snapshot:
    """Copies of everything that a step may write, to compare with and to go back to."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self._optimizer = optimizer
        self._params = [p for group in optimizer.param_groups for p in group["params"]]
        self._values = [p.detach().clone() for p in self._params]
        self._grads = [p.grad for p in self._params]
        self._groups = [_without_params(group) for group in optimizer.param_groups]
        self._state = _copy_state(optimizer)

    def restore(self, grads: bool = True) -> None:
        """Put weights, state and hyper-parameters back, and on request the gradients."""
        with torch.no_grad():
            for parameter, value in zip(self._params, self._values, strict=True):
                parameter.copy_(value)
        for parameter, grad in zip(self._params, self._grads, strict=True) if grads else ():
            parameter.grad = grad
        state = self._optimizer.state
        state.clear()
        state.update({key: copy.deepcopy(value) for key, value in self._state.items()})
        for group, saved in zip(self._optimizer.param_groups, self._groups, strict=True):
            params = group["params"]
            group.clear()
            group.update(copy.deepcopy(saved), params=params)

    def holds(self) -> bool:
        """True where nothing differs by a single bit."""
        weights = [p.detach() for p in self._params]
        groups = [_without_params(group) for group in self._optimizer.param_groups]
        return (
            same_bits(weights, self._values)
            and same_bits(groups, self._groups)
            and same_bits(_copy_state(self._optimizer), self._state)
        )


def same_bits(left: Any, right: Any) -> bool:
    """Compare nested containers of tensors and plain values; NaN equals NaN."""
    if isinstance(left, torch.Tensor) and isinstance(right, torch.Tensor):
        alike = left.dtype == right.dtype and left.shape == right.shape
        return alike and bool(torch.isclose(left, right, rtol=0, atol=0, equal_nan=True).all())
    if isinstance(left, dict) and isinstance(right, dict):
        return left.keys() == right.keys() and all(same_bits(left[k], right[k]) for k in left)
    if isinstance(left, list | tuple) and isinstance(right, list | tuple):
        return len(left) == len(right) and all(map(same_bits, left, right))
    return bool(left == right or (left != left and right != right))


def find_way(optimizer: torch.optim.Optimizer, *args: Any, **kwargs: Any) -> Way:
    """The way in which this optimizer can be skipped whole.

    Args:
        optimizer: with the gradients of the step that is to be skipped.
        args: what that step is called with; a closure must do nothing.
        kwargs: the same, by name.

    Raises:
        AttachError: neither way leaves weights and state as they are; names the class.
    """
    if type(optimizer).__module__.startswith("torch.optim."):
        return shadow_of
    snapshot = Snapshot(optimizer)
    for way in (shadow_of, without_gradients):
        try:
            raw_step(way(optimizer), *args, **kwargs)
            unchanged = snapshot.holds()
        except Exception:  # whatever a foreign step raises, the next way may do
            unchanged = False
        snapshot.restore()
        if unchanged:
            return way
    name = type(optimizer).__qualname__
    raise AttachError(
        f"{name} cannot be skipped whole: its step() changes weights or state even when no "
        f"parameter has a gradient. Type steadygrad.torch.attach(..., on_nonfinite='raise'), or "
        "'zero', or 'propagate'"
    )


def raw_step(optimizer: torch.optim.Optimizer, *args: Any, **kwargs: Any) -> Any:
    """Run the class's `step` without the hooks that stand on it."""
    step: Any = type(optimizer).step
    if getattr(step, "hooked", False):  # torch's mark on the wrapper that calls hooks
        step = step.__wrapped__
    return step(optimizer, *args, **kwargs)


def _without_params(group: dict[str, Any]) -> dict[str, Any]:
    return {key: copy.deepcopy(value) for key, value in group.items() if key != "params"}


def _copy_state(optimizer: torch.optim.Optimizer) -> dict[Any, Any]:
    return {key: copy.deepcopy(value) for key, value in optimizer.state.items()}
