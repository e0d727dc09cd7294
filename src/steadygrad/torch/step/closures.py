"""Steps with a closure: the gradients to clip are made inside them.

A closure that is evaluated once is run before the step, which is then given its value. An optimizer
that searches (LBFGS, or one that was seen to evaluate it again) is run here as a whole, on every
evaluation's clipped gradients, and put back where one of them breaks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from steadygrad.errors import NonFiniteError
from steadygrad.torch.step import skipping
from steadygrad.torch.step.clipper import Outcome
from steadygrad.torch.step.engine import Arguments, Attached

Closure = Callable[[], Any]


class _LeaveSearch(Exception):
    """Ends an optimizer's search from inside its closure."""


class Closures:
    """Runs the steps of one optimizer that come with a closure.

    Args:
        attached: what measures and acts.

    Attributes:
        raised: the script's closure itself raised.
    """

    def __init__(self, attached: Attached) -> None:
        self._attached = attached
        self.raised = False
        self._searches = isinstance(attached.optimizer, torch.optim.LBFGS)

    def run(self, args: tuple[Any, ...], kwargs: dict[str, Any], closure: Closure) -> Arguments:
        """Evaluate, clip and record.

        Args:
            args: what the step was called with, the optimizer first.
            kwargs: the same, by name.
            closure: the one among them.

        Returns:
            The arguments to go on with.
        """
        if self._searches:
            return self._search(args, kwargs, closure)
        return self._once(args, kwargs, closure)

    def _once(self, args: tuple[Any, ...], kwargs: dict[str, Any], closure: Closure) -> Arguments:
        """Run the closure here, so that its gradients can be acted on; give its value on."""
        loss = self._evaluate(closure)
        if self._attached.act():
            return self._attached.skipped(*_with_closure(args, kwargs, lambda: loss))
        values = [loss]

        def again() -> Any:
            if values:
                return values.pop()
            self._searches = True  # known from now on: the next step is guarded as a whole
            value = self._evaluate(closure)
            if self._attached.process().skip:
                raise NonFiniteError(self._cannot_skip())
            return value

        return _with_closure(args, kwargs, again)

    def _search(self, args: tuple[Any, ...], kwargs: dict[str, Any], closure: Closure) -> Arguments:
        """Run a step that evaluates its closure often, and leave nothing of it if it breaks."""
        attached, clipper = self._attached, self._attached.clipper
        found: list[Outcome] = []
        values: list[Any] = []
        guarded = clipper.on_nonfinite in ("skip", "raise")
        snapshot = skipping.Snapshot(attached.optimizer) if guarded else None
        remembered = clipper.memory.state

        def evaluate() -> Any:
            loss = self._evaluate(closure)
            values.append(loss)
            outcome = attached.process()
            if outcome.skip:
                found[:] = [outcome]
                raise _LeaveSearch
            found[:] = found or [outcome]
            return loss

        result = None
        inner_args, inner_kwargs = _with_closure(args, kwargs, evaluate)
        try:
            result = skipping.raw_step(*inner_args, **inner_kwargs)
        except (_LeaveSearch, NonFiniteError) as left:
            clipper.memory.state = remembered
            if snapshot is not None:
                snapshot.restore(grads=False)
            if isinstance(left, NonFiniteError):
                raise
            result = values[0]
        attached.finish(found[0])
        return attached.skipped(*_with_closure(args, kwargs, lambda: result))

    def _evaluate(self, closure: Closure) -> Any:
        attached = self._attached
        if attached.finder is not None:
            attached.finder.begin()
        self.raised = True
        with torch.enable_grad():
            value = closure()
        self.raised = False
        if attached.finder is not None:
            attached.finder.rest()
        if attached.closure_loss is None:
            attached.closure_loss = value.detach() if isinstance(value, torch.Tensor) else value
        return value

    def _cannot_skip(self) -> str:
        name = type(self._attached.optimizer).__qualname__
        return (
            f"step {self._attached.steps - 1}: gradients became non-finite in a later evaluation "
            f"of the closure, and {name} was not known to evaluate it more than once, so the step "
            "cannot be skipped whole; the next steps are guarded"
        )


def closure_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Closure | None:
    """The closure among a step's arguments; None for none.

    Example:
        >>> closure_of(("optimizer", None), {}), closure_of(("optimizer",), {"closure": len})
        (None, <built-in function len>)
    """
    given = kwargs.get("closure", args[1] if len(args) > 1 else None)
    return given if callable(given) else None


def _with_closure(args: tuple[Any, ...], kwargs: dict[str, Any], closure: Closure) -> Arguments:
    if "closure" in kwargs:
        return args, {**kwargs, "closure": closure}
    return (args[0], closure, *args[2:]), kwargs
