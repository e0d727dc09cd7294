"""Skipping a step whole: weights, state and hyper-parameters stay as they were, bit for bit.

A pre-hook cannot stop the step that it precedes, but it can see to it that nothing comes of it:

- a shadow, a `self` whose groups are empty and whose inner optimizers are shadows, is handed to the
  step in the optimizer's place: nothing has to be put back afterwards;
- gradients that are not there are passed over by most optimizers;
- what a step on gradients of 0, or of 1 where it divides by them, has written is put back
  afterwards, from a snapshot.

The first serves every optimizer of torch. For a class that is not torch's, `steadygrad.torch.step.
trial` finds the first of them that serves, on a copy.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np
import torch

from steadygrad.torch.step.inner import (
    Rebuilding,
    inner_optimizers,
    no_state,
    without_parameters,
)
from steadygrad.torch.step.snapshot import Snapshot

PutBack = Callable[[], None]
"""Ends a skipped step: what was changed for it is as before."""

Fill = Callable[[torch.optim.Optimizer], PutBack]
"""Puts other gradients in the place of those that are there, until they are put back."""

SMALL = 64
"""Elements of a tensor that is taken for numbers, not for weights."""

SkipWay = Callable[[torch.optim.Optimizer], tuple[torch.optim.Optimizer, PutBack]]
"""Prepares a step of which nothing comes: the `self` to run it on, and what to call after it."""


class Skipping(NamedTuple):
    """How an optimizer is skipped.

    Attributes:
        whole: before its step begins.
        gradients_read_last: whether a step reads no gradient and writes nothing before its closure
            has been evaluated, once: to skip, it is enough then to take the gradients away.
        fill: what it finds for gradients where it goes on after an evaluation, its step undone
            afterwards.
        ignores_closure: whether it steps on the gradients that are there and evaluates no closure.
    """

    whole: SkipWay
    gradients_read_last: bool
    fill: Fill
    ignores_closure: bool = False


def by_shadow(
    optimizer: torch.optim.Optimizer,
) -> tuple[torch.optim.Optimizer, PutBack]:
    """A stand-in on which `step` finds no parameters; it shares nothing that a step writes."""
    rebuilding = Rebuilding(lambda tensor: tensor, without_parameters, no_state, raw_step)
    shadow = rebuilding.optimizer(optimizer)
    if isinstance(optimizer, torch.optim.LBFGS):  # which keeps its parameters apart
        shadow._params = [torch.zeros(1)]  # type: ignore[attr-defined]
        shadow._numel_cache = None  # type: ignore[attr-defined]
    return shadow, _nothing_to_put_back


def by_taking_gradients(
    optimizer: torch.optim.Optimizer,
) -> tuple[torch.optim.Optimizer, PutBack]:
    """The optimizer itself, its gradients taken away until after the step."""
    return optimizer, _replace_gradients(optimizer, lambda parameter, grad: None)


def by_putting_back(fill: Fill) -> SkipWay:
    """The optimizer itself on gradients that say nothing; what it writes is put back after it."""

    def skip(optimizer: torch.optim.Optimizer) -> tuple[torch.optim.Optimizer, PutBack]:
        snapshot, put_random_back = Snapshot(optimizer), keep_random_states(optimizer)
        give_back = fill(optimizer)

        def put_back() -> None:
            snapshot.restore()
            give_back()
            put_random_back()

        return optimizer, put_back

    return skip


def with_small_things_put_back(way: SkipWay) -> SkipWay:
    """A way after which numbers, counters and random states are put back too.

    A step of which nothing comes may yet count it, let a running mean decay, or draw a random
    number. Weights and state for each of them are not copied for this.
    """

    def skip(optimizer: torch.optim.Optimizer) -> tuple[torch.optim.Optimizer, PutBack]:
        snapshot, put_random_back = Snapshot(optimizer, SMALL), keep_random_states(optimizer)
        stand_in, put_back = way(optimizer)

        def put_all_back() -> None:
            put_back()
            snapshot.restore()
            put_random_back()

        return stand_in, put_all_back

    return skip


def keep_random_states(optimizer: torch.optim.Optimizer) -> PutBack:
    """The random states as they are now: Python's, NumPy's and torch's where the weights are."""
    devices = {p.device for p in _parameters(optimizer) if p.device.type == "cuda"}
    here = random.getstate(), np.random.get_state(), torch.get_rng_state()
    there = [(device, torch.cuda.get_rng_state(device)) for device in devices]

    def put_back() -> None:
        random.setstate(here[0])
        np.random.set_state(here[1])
        torch.set_rng_state(here[2])
        for device, state in there:
            torch.cuda.set_rng_state(state, device)

    return put_back


def zero_gradients(optimizer: torch.optim.Optimizer) -> PutBack:
    """Zeros in the place of the gradients, which stay as they are until they are put back."""
    return _replace_gradients(optimizer, _zero)


def unit_gradients(optimizer: torch.optim.Optimizer) -> PutBack:
    """The same with ones: some optimizers divide by a norm."""
    return _replace_gradients(optimizer, lambda parameter, grad: _one(parameter, grad))


def _zero(parameter: torch.Tensor, grad: torch.Tensor) -> torch.Tensor:
    """A gradient of 0; with a graph where the one that was there has one, as for second orders."""
    if grad.grad_fn is None:
        return torch.zeros_like(grad)
    with torch.enable_grad():
        return parameter * 0.0


def _one(parameter: torch.Tensor, grad: torch.Tensor) -> torch.Tensor:
    with torch.enable_grad():
        return _zero(parameter, grad.to_dense() if grad.is_sparse else grad) + 1.0


STOCK = Skipping(by_shadow, gradients_read_last=True, fill=zero_gradients)
SEARCHES = Skipping(by_shadow, gradients_read_last=False, fill=zero_gradients)
UNKNOWN = Skipping(by_putting_back(zero_gradients), gradients_read_last=False, fill=zero_gradients)
"""How one is skipped of which nothing can be found out."""


def stock_skipping(optimizer: torch.optim.Optimizer) -> Skipping | None:
    """How an optimizer of torch is skipped; None for any other."""
    if isinstance(optimizer, torch.optim.LBFGS):
        return SEARCHES
    module = type(optimizer).__module__
    return STOCK if module.startswith(("torch.optim.", "torch.distributed.optim.")) else None


def raw_step(optimizer: torch.optim.Optimizer, *args: object, **kwargs: object) -> object:
    """Run the class's `step` without the hooks that stand on it."""
    step: Any = type(optimizer).step
    if getattr(step, "hooked", False):  # torch's mark on the wrapper that calls hooks
        step = step.__wrapped__
    return step(optimizer, *args, **kwargs)


def _replace_gradients(
    optimizer: torch.optim.Optimizer,
    other: Callable[[torch.Tensor, torch.Tensor], torch.Tensor | None],
) -> PutBack:
    # from the parameter to what stood there: a step may call zero_grad itself
    taken = [(p, p.grad) for p in _parameters(optimizer) if p.grad is not None]
    for parameter, grad in taken:
        parameter.grad = other(parameter, grad)

    def put_back() -> None:
        for parameter, grad in taken:
            parameter.grad = grad

    return put_back


def _parameters(optimizer: torch.optim.Optimizer) -> Iterable[torch.Tensor]:
    both = (optimizer, *inner_optimizers(optimizer))
    return dict.fromkeys(p for each in both for group in each.param_groups for p in group["params"])


def _nothing_to_put_back() -> None:
    return None
