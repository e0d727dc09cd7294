"""Steps with a closure: the gradients to clip are made inside them.

The optimizer evaluates its closure when and as often as it likes: SAM after it has moved the
weights, LBFGS many times, most others once and first of all. Each evaluation's gradients are acted
on before the optimizer goes on, as if the closure ended with a clip call. The step on record is the
first evaluation, or the one for which the step is skipped.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Protocol

import torch

from steadygrad.errors import NonFiniteError
from steadygrad.invisible import leave_no_frame
from steadygrad.torch.gradients.outcome import StepOutcome
from steadygrad.torch.step.clipper import Clipper
from steadygrad.torch.step.in_flight import StepInFlight
from steadygrad.torch.step.skipping import (
    PutBack,
    Skipping,
    by_taking_gradients,
    keep_random_states,
    with_small_things_put_back,
    zero_gradients,
)
from steadygrad.torch.step.snapshot import Snapshot

Closure = Callable[..., Any]

Arguments = tuple[tuple[Any, ...], dict[str, Any]]
"""What a step is called with."""


class Host(Protocol):
    """What measures and acts for a closure's step."""

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """Whose step it is."""

    @property
    def clipper(self) -> Clipper:
        """Decides, and holds the policy's state."""

    @property
    def skipping(self) -> Skipping | None:
        """How the optimizer is skipped; None where that was not asked for."""

    def process(self) -> StepOutcome:
        """Measure the gradients that are there and act on them."""

    def evaluation_begins(self) -> None:
        """The closure is about to run."""

    def evaluation_ends(self, first: bool) -> None:
        """The closure has run, and nothing was done with its gradients yet."""

    def fault(self, error: Exception) -> None:
        """Raise a fault of ours, or tell it, where the training is to survive it."""


def with_acting_closure(
    host: Host, step: StepInFlight, args: tuple[object, ...], kwargs: dict[str, object]
) -> Arguments:
    """The arguments for a step whose closure acts on the gradients that it makes.

    Args:
        host: measures and acts.
        step: the step that begins.
        args: what it was called with, the optimizer first.
        kwargs: the same, by name.

    Returns:
        The same, with another closure.
    """
    closure = closure_of(args, kwargs)
    assert closure is not None
    step.policy_state = host.clipper.memory.state
    last_read = host.skipping is not None and host.skipping.gradients_read_last
    if host.clipper.may_stop and not last_read:
        step.snapshot = Snapshot(host.optimizer)

    def evaluate(*inner_args: object, **inner_kwargs: object) -> object:
        if step.skip:  # nothing of this step will remain: the script computes no more for it
            return step.handed_on
        host.evaluation_begins()
        try:
            value = closure(*inner_args, **inner_kwargs)
        except BaseException as error:
            leave_no_frame(error)
            raise
        try:
            with torch.no_grad():
                host.evaluation_ends(first=step.evaluations == 0)
                _act(host, step, value)
        except NonFiniteError:
            raise
        except Exception as error:
            host.fault(error)
        if step.skip and step.evaluations > 1:
            return step.handed_on  # a search that had a number goes on with that, not with a NaN
        step.handed_on = _without_graph(value)
        return value

    return _replaced(args, kwargs, _dressed_as(closure, evaluate))


def closure_of(args: tuple[object, ...], kwargs: dict[str, object]) -> Closure | None:
    """The closure among a step's arguments; None for none, as where a step takes the model.

    Example:
        >>> closure_of(("optimizer", None), {}), closure_of(("optimizer",), {"closure": len})
        (None, <built-in function len>)
    """
    named = kwargs.get("closure")
    if named is None and len(args) > 1 and not isinstance(args[1], (torch.nn.Module, type)):
        named = args[1]
    return named if callable(named) else None


def _act(host: Host, step: StepInFlight, value: object) -> None:
    try:
        outcome = host.process()
    except NonFiniteError:
        host.clipper.memory.state = step.policy_state
        if step.snapshot is not None:
            step.snapshot.restore()
        raise
    step.evaluations += 1
    step.skip = outcome.skip is True and host.clipper.may_stop
    if step.skip or step.evaluations == 1:
        step.outcome = outcome
        step.closure_value = _loss_among(value)
    if step.skip:
        if step.evaluations > 1:  # a first one has left the state as a skipped step's is to be
            host.clipper.memory.state = step.policy_state
        step.put_back = _drop_gradients(host, searches=step.snapshot is not None)


def _loss_among(value: object) -> object:
    """The loss that a closure has returned, alone or beside outputs; None where that is not known.

    Example:
        >>> _loss_among(0.5), _loss_among((torch.zeros(4, 2), 0.5)), _loss_among((0.5, 0.25))
        (0.5, 0.5, None)
    """
    parts = value if isinstance(value, (tuple, list)) else [value]
    single = [p for p in parts if getattr(p, "numel", _one)() == 1 and hasattr(p, "__float__")]
    return _without_graph(single[0]) if len(single) == 1 else None


def _one() -> int:
    return 1


def _without_graph(value: object) -> object:
    return value.detach() if isinstance(value, torch.Tensor) else value


def _drop_gradients(host: Host, searches: bool) -> PutBack:
    """See to it that nothing comes of the rest of a step whose closure has been evaluated."""
    optimizer = host.optimizer
    if not searches:
        return with_small_things_put_back(by_taking_gradients)(optimizer)[1]
    # zeros end a search, and few steps can fail on them: those of which a trial has told do not
    fill = zero_gradients if host.skipping is None else host.skipping.fill
    put_random_back, give_back = keep_random_states(optimizer), fill(optimizer)

    def put_back() -> None:
        give_back()
        put_random_back()

    return put_back


def _dressed_as(closure: Closure, evaluate: Closure) -> Closure:
    """The second function under the first one's name and attributes."""
    return functools.update_wrapper(evaluate, closure)


def _replaced(args: tuple[object, ...], kwargs: dict[str, object], closure: Closure) -> Arguments:
    if "closure" in kwargs:
        return args, {**kwargs, "closure": closure}
    return (args[0], closure, *args[2:]), kwargs
