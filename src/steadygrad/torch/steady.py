"""The handle that `attach` returns: hooks around one optimizer's step.

The pre-hook measures, decides and acts, before the optimizer reads a gradient. A step
that must be dropped is handed a `self` without parameters (see `skipping`); a step
with a closure gets one whose first value is known already, because the gradients
to clip are made inside it.
"""

from __future__ import annotations

import math
import sys
import time
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from operator import attrgetter
from typing import Any

import torch

from steadygrad import kernels
from steadygrad.errors import (
    AttachError,
    NaNOriginWarning,
    NoGradientsWarning,
    NonFiniteError,
    UsageError,
)
from steadygrad.policies import Policy
from steadygrad.runlog import origin as origins
from steadygrad.runlog.records import StepRecord, TensorInfo
from steadygrad.stats import GradientStats
from steadygrad.torch import copies, losses, scaler, skipping
from steadygrad.torch.batch import Batch
from steadygrad.torch.clipper import Clipper, Outcome
from steadygrad.torch.folding import Folding
from steadygrad.torch.naming import ModelNames, Names
from steadygrad.torch.origin.finder import Finder
from steadygrad.torch.outbox import Outbox
from steadygrad.torch.recording import Recorder, facts_of
from steadygrad.torch.table import ParameterTable
from steadygrad.torch.warn import warn_user

_GRAD = attrgetter("grad")

Arguments = tuple[tuple[Any, ...], dict[str, Any]]


class _LeaveSearch(Exception):
    """Ends an optimizer's search from inside its closure."""


class Steady:
    """Clipping, guarding and recording attached to one optimizer.

    Made by `steadygrad.torch.attach`. A context manager: leaving it detaches.

    Attributes:
        policy: the clipping policy.
        stats: the last step's `GradientStats`, before clipping; None before the first step.
        origin: where the last NaN or inf came from; None without one, or without `find_nan`.
        overhead_seconds: time spent here so far.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        policy: Policy,
        on_nonfinite: str,
        run: Any,
        names: Names | None,
        optimizer_index: int,
    ) -> None:
        if getattr(optimizer, scaler.HANDLE, None) is not None:
            raise AttachError(
                f"this {type(optimizer).__name__} is attached already; call detach() on the handle "
                "that attach returned, or give both policies in one attach as {pattern: spec}"
            )
        # weak: a cycle would keep the weights of a dropped optimizer until the next collection
        self._held = weakref.ref(optimizer)
        self.policy = policy
        self.stats: GradientStats | None = None
        self.origin: origins.Origin | None = None
        self.overhead_seconds = 0.0
        self._clipper = Clipper(policy, on_nonfinite)
        self._recorder = _open(run, optimizer, policy, on_nonfinite)
        if self._recorder is not None:  # also where the optimizer is dropped without `detach`
            weakref.finalize(self, self._recorder.close)
        self._names = names
        self._index = optimizer_index
        self._table = ParameterTable(names, optimizer_index)
        self._last: StepRecord | None = None
        self._steps = 0
        self._depth = 0
        self._loss: Any = None
        self._closure_loss: Any = None
        self._heard: Callable[[], Any] = _nothing_heard
        self._present: list[int] | None = None
        self._announced: tuple[TensorInfo, ...] | None = None
        self._loss_scale: torch.Tensor | None = None
        self._steps_before_scaler = 0
        self._searches = isinstance(optimizer, torch.optim.LBFGS)
        self._way: skipping.Way | None = None
        self._folding = Folding()
        self._outbox = Outbox()
        self._taken: list[tuple[torch.Tensor, torch.Tensor | None]] = []
        self._warned = False
        self._finder: Finder | None = None
        self._tells_origins = True
        self._hold()

    def _hold(self) -> None:
        self._hooks = [
            # making an optimizer has imported the compiler already
            self.optimizer.register_step_pre_hook(_untraced(self._before)),
            self.optimizer.register_step_post_hook(_untraced(self._after)),
        ]
        setattr(self.optimizer, scaler.HANDLE, self)
        scaler.watch(self.optimizer)
        copies.mark_copies(self.optimizer)

    # -- what the user calls -----------------------------------------------------------------

    @property
    def last(self) -> StepRecord:
        """The last step's record; where its figures are on a device, this waits for them.

        Raises:
            UsageError: there was no step yet.
        """
        self._empty()
        if self._last is None:
            raise UsageError("no step yet: call optimizer.step() before reading .last")
        return self._last

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """The optimizer attached to.

        Raises:
            UsageError: nothing else holds it any more.
        """
        optimizer = self._held()
        if optimizer is None:
            raise UsageError("the optimizer that was attached to is gone; keep a variable for it")
        return optimizer

    @property
    def steps(self) -> int:
        """Number of steps seen, skipped ones included."""
        return self._steps

    def state_dict(self) -> dict[str, Any]:
        """Everything that a resumed training needs: tensors, strings and numbers only.

        Returns:
            The policy's spec and state, the tensors' names, and the number of steps.
        """
        self._follow_table()
        return {
            "policy": self.policy.spec(),
            "names": list(self._table.names),
            "steps": self._steps,
            "state": self._clipper.memory.export(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a `state_dict`.

        Args:
            state: from a handle with the same policy over the same tensors.

        Raises:
            UsageError: the policy or the tensors differ; says how.
        """
        missing = {"policy", "names", "steps", "state"} - state.keys()
        if missing:
            raise UsageError(f"not a steadygrad state: it lacks {', '.join(sorted(missing))}")
        if state["policy"] != self.policy.spec():
            raise UsageError(
                f"the saved state is of the policy {state['policy']!r}, but this optimizer is "
                f"attached with {self.policy.spec()!r}: type attach(optimizer, "
                f"clip={state['policy']!r}), or start the new policy without load_state_dict"
            )
        self._follow_table()
        if self.policy.per_tensor and list(state["names"]) != list(self._table.names):
            raise UsageError(
                f"the policy {self.policy.spec()} remembers each tensor, and the saved state is of "
                f"other tensors: {_difference(state['names'], self._table.names)}"
            )
        self._clipper.memory.load(dict(state["state"]))
        self._steps = int(state["steps"])

    def detach(self) -> None:
        """Leave the optimizer as it was before `attach`; a second call does nothing."""
        self._recover()
        optimizer = self._held()
        if optimizer is not None and getattr(optimizer, scaler.HANDLE, None) is self:
            for hook in self._hooks:
                hook.remove()
            delattr(optimizer, scaler.HANDLE)
            scaler.unwatch(optimizer)
            copies.unmark_copies(optimizer)
        losses.forget(self)
        if self._finder is not None:
            self._finder.end()
        if isinstance(self._names, ModelNames):
            self._names.finish()
        self._empty()
        if self._recorder is not None:
            self._recorder.close()

    def __enter__(self) -> Steady:
        return self

    def __exit__(self, *exception: object) -> None:
        self.detach()

    def observe_loss(self, value: Any) -> None:
        """Tell a loss whose gradients the next step applies; several are summed.

        Args:
            value: unscaled, a number or a tensor of one element; kept without its graph.
        """
        if isinstance(value, torch.Tensor):
            value = value.detach()
        self._loss = value if self._loss is None else self._loss + value

    def hear_losses(self) -> None:
        """From now on, know the losses on which `backward` is called without being told."""
        self._heard = losses.hear(self)

    def find_nan(self, quiet: bool = False) -> None:
        """From now on, find out where the first non-finite gradient or loss comes from.

        Args:
            quiet: no warning; the answer is in `origin` and in the run file.
        """
        if self._finder is not None:
            self._finder.end()
        self._finder = Finder(self.optimizer)
        self._finder.begin()
        self._tells_origins = not quiet

    def act_through(self, clipper: Clipper) -> None:
        """Measure and act through another clipper, in silence.

        `steadygrad run` puts one here that changes nothing and knows of the script's own clip
        calls; a script that is only observed is not warned either.

        Args:
            clipper: used from the next step on.
        """
        self._clipper = clipper
        self._warned = True

    def scaler_enters(self, scale: torch.Tensor) -> None:
        """`GradScaler.step` begins on this optimizer."""
        self._loss_scale = scale
        self._steps_before_scaler = self._steps

    def scaler_leaves(self) -> None:
        """`GradScaler.step` is over; where it called no `step`, it found an overflow."""
        if self._steps == self._steps_before_scaler:
            batch, self._present = self._gather()
            stats = self._clipper.measure(batch)
            self._seek_origin(stats)
            self._finish(self._clipper.skipped(stats, self._present))
            if self._finder is not None:
                self._finder.stepped()
        self._loss_scale = None

    # -- hooks -------------------------------------------------------------------------------

    def _before(
        self, optimizer: torch.optim.Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Arguments | None:
        if optimizer is not self.optimizer:  # a shadow, or a trial of one
            return None
        if self._depth and _inside_step_of(optimizer):
            self._depth += 1
            return None
        self._recover()
        if self._finder is not None:
            self._finder.rest()
        self._depth = 1
        closure = kwargs.get("closure", args[1] if len(args) > 1 else None)
        if not callable(closure):
            return self._skipped(args, kwargs) if self._act(fold=True) else None
        if self._searches:
            return self._search(args, kwargs, closure)
        return self._step_once(args, kwargs, closure)

    def _after(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        if optimizer is self.optimizer:
            self._depth -= 1
            if self._depth <= 0:
                self._recover()
                if self._finder is not None:
                    self._finder.stepped()

    def _recover(self) -> None:
        """Undo what was done for one step only; also after a step that raised."""
        self._depth = 0
        self._folding.take_back()
        while self._taken:
            parameter, grad = self._taken.pop()
            parameter.grad = grad

    def _step_once(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], closure: Callable[[], Any]
    ) -> Arguments:
        """Run the closure here, so that its gradients can be acted on; give its value on."""
        loss = self._evaluate(closure)
        if self._act():
            return self._skipped(*_with_closure(args, kwargs, lambda: loss))
        values = [loss]

        def again() -> Any:
            if values:
                return values.pop()
            self._searches = True  # known from now on: the next step is guarded as a whole
            value = self._evaluate(closure)
            if self._process().skip:
                raise NonFiniteError(self._cannot_skip())
            return value

        return _with_closure(args, kwargs, again)

    def _search(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], closure: Callable[[], Any]
    ) -> Arguments:
        """Run a step that evaluates its closure often, and leave nothing of it if it breaks."""
        found: list[Outcome] = []
        guarded = self._clipper.on_nonfinite in ("skip", "raise")
        snapshot = skipping.Snapshot(self.optimizer) if guarded else None
        remembered = self._clipper.memory.state

        def evaluate() -> Any:
            loss = self._evaluate(closure)
            values.append(loss)
            outcome = self._process()
            if outcome.skip:
                found[:] = [outcome]
                raise _LeaveSearch
            found[:] = found or [outcome]
            return loss

        values: list[Any] = []
        result = None
        inner_args, inner_kwargs = _with_closure(args, kwargs, evaluate)
        try:
            result = skipping.raw_step(*inner_args, **inner_kwargs)
        except (_LeaveSearch, NonFiniteError) as left:
            self._clipper.memory.state = remembered
            if snapshot is not None:
                snapshot.restore(grads=False)
            if isinstance(left, NonFiniteError):
                raise
            result = values[0]
        self._finish(found[0])
        return self._skipped(*_with_closure(args, kwargs, lambda: result))

    def _evaluate(self, closure: Callable[[], Any]) -> Any:
        if self._finder is not None:
            self._finder.begin()
        with torch.enable_grad():
            value = closure()
        if self._finder is not None:
            self._finder.rest()
        if self._closure_loss is None:
            self._closure_loss = value.detach() if isinstance(value, torch.Tensor) else value
        return value

    def _skipped(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Arguments:
        """The arguments with which the step that follows does nothing."""
        if self._way is None:
            self._way = skipping.find_way(self.optimizer, *args[1:], **kwargs)
        if self._way is skipping.without_gradients:
            self._taken = [(p, p.grad) for p in self._table.params]
        return (self._way(self.optimizer), *args[1:]), kwargs

    def _cannot_skip(self) -> str:
        name = type(self.optimizer).__qualname__
        return (
            f"step {self._steps - 1}: gradients became non-finite in a later evaluation of the "
            f"closure, and {name} was not known to evaluate it more than once, so the step cannot "
            "be skipped whole; the next steps are guarded"
        )

    # -- one step ----------------------------------------------------------------------------

    def _act(self, fold: bool = False) -> bool:
        """Measure, decide, act and record; True where the step must be skipped."""
        outcome = self._process(fold)
        self._finish(outcome)
        # where nothing was asked for, a fused optimizer heeds the scaler's own flag
        return outcome.skip is True and self._clipper.on_nonfinite != "propagate"

    def _process(self, fold: bool = False) -> Outcome:
        started = time.perf_counter()
        batch, self._present = self._gather()
        ways = (self._scale, self._skip) if fold else ()
        try:
            outcome = self._clipper.process(batch, self._steps, self._scaler_skips(), *ways)
        except NonFiniteError as error:
            raise self._explained(error, batch) from None
        self._seek_origin(outcome.stats)
        self._spent(started)
        return outcome

    def _explained(self, error: NonFiniteError, batch: Batch) -> NonFiniteError:
        """The error, with what is known of the origin."""
        found = self._seek_origin(self._clipper.measure(batch))
        return error if found is None else NonFiniteError(f"{error}. {found}")

    def _seek_origin(self, stats: GradientStats) -> origins.Origin | None:
        if self._finder is None:
            return None
        table, bad = self._table, stats.nonfinite
        found = self._finder.check(
            self._steps, bad, stats.names, table.params, table.names, self._loss_scale
        )
        if found is not None:
            self._tell_origin(found)
        return found

    def _tell_origin(self, origin: origins.Origin) -> None:
        self.origin = origin
        if self._recorder is not None:
            data = {**origin.as_json(), "optimizer": self._index}
            self._recorder.writer.write_event(origins.EVENT, data, origin.step)
        if self._tells_origins and self._clipper.on_nonfinite != "raise":
            warn_user(str(origin), NaNOriginWarning)

    def _scale(self, grads: Sequence[torch.Tensor], coef: Any) -> None:
        if not self._folding.scale(self.optimizer, grads, coef):
            kernels.scale_(grads, coef)

    def _skip(self, flag: torch.Tensor) -> bool:
        return self._folding.skip(self.optimizer, flag)

    def _scaler_skips(self) -> bool:
        """True inside `GradScaler.step`, which drops overflowing steps as a part of its work."""
        return self._loss_scale is not None

    def _spent(self, started: float) -> None:
        seconds = time.perf_counter() - started
        self.overhead_seconds += seconds
        if self._recorder is not None:
            self._recorder.spent(seconds)

    def _gather(self) -> tuple[Batch, list[int] | None]:
        """The gradients that are there, and their places; None for all."""
        table = self._table
        self._follow_table()
        if self._announced is not table.infos:
            self._announce()
        grads: list[Any] = list(map(_GRAD, table.params))
        scale = self._carried_scale()
        state = self.optimizer.state
        if grads and type(None) not in set(map(type, grads)):
            batch = Batch(grads, table.params, table.names, table.sizes, scale, state)
            return batch, None
        present = [i for i, grad in enumerate(grads) if grad is not None]
        batch = Batch(
            grads=[grads[i] for i in present],
            params=[table.params[i] for i in present],
            names=tuple(table.names[i] for i in present),
            sizes=tuple(table.sizes[i] for i in present),
            scale=scale,
            state=state,
            present=present,
        )
        if not present:
            self._warn_of_nothing()
        return batch, present

    def _follow_table(self) -> None:
        if self._table.refresh(self.optimizer):
            self._clipper.memory.follow(self._table.names, self._table.sizes)

    def _announce(self) -> None:
        """Name the parameters in the run file, once the first forward pass is over."""
        if isinstance(self._names, ModelNames) and self._names.finish():
            self._table.describe(self.optimizer)
        if self._announced is not self._table.infos and self._recorder is not None:
            self._empty()  # its steps are of the tensors announced before
            self._recorder.add_tensors(self._table.infos)
        self._announced = self._table.infos

    def _warn_of_nothing(self) -> None:
        if not self._warned:
            self._warned = True
            warn_user(
                f"step {self._steps}: no parameter of this {type(self.optimizer).__name__} has a "
                "gradient, so nothing is clipped: call loss.backward() before optimizer.step(), "
                "and zero_grad() after it",
                NoGradientsWarning,
            )

    def _carried_scale(self) -> Any:
        """The loss scale that a GradScaler leaves to a fused optimizer to divide by."""
        if getattr(self.optimizer, "_step_supports_amp_scaling", False):
            return getattr(self.optimizer, "grad_scale", None)
        return None

    def _finish(self, outcome: Outcome) -> None:
        started = time.perf_counter()
        self.stats = outcome.stats
        fields = self._fields(outcome)
        there = {k: v for k, v in fields.items() if isinstance(v, torch.Tensor)}
        record = self._record({k: v for k, v in fields.items() if k not in there})
        if self._recorder is not None:
            self._recorder.sample(self._steps, self._table.params)
        if isinstance(outcome.stats.total_norm, torch.Tensor):
            self._outbox.send(record, there, outcome.stats, self._present)
            self._empty(wait=False)
        else:
            self._empty()
            self._deliver(record, outcome.stats, self._present)
        self._steps += 1
        self._loss = self._closure_loss = None
        self._spent(started)

    def _fields(self, outcome: Outcome) -> dict[str, Any]:
        """A record's figures; a figure on a device is left there if the norm is there too."""
        stats, applied = outcome.stats, outcome.applied
        fields = {
            "loss": self._step_loss(),
            "norm": stats.total_norm,
            "threshold": outcome.threshold,
            "coef": applied.coef,
            "cosine": applied.cosine,
            "clipped": applied.clipped,
            "skip": outcome.skip,
            "lr": self.optimizer.param_groups[0].get("lr"),
            "loss_scale": 1.0 if self._loss_scale is None else self._loss_scale,
        }
        if isinstance(stats.total_norm, torch.Tensor):
            home = stats.total_norm.device
            return {k: v if _is_on(v, home) else _number(v) for k, v in fields.items()}
        return {
            **{key: _number(value) for key, value in fields.items()},
            "nonfinite": 0 if math.isfinite(stats.total_norm) else int(stats.nonfinite.sum()),
        }

    def _step_loss(self) -> Any:
        """What was told, else what the closure gave, else what was heard."""
        told = self._closure_loss if self._loss is None else self._loss
        heard = self._heard()  # asked for in any case: it then begins to sum anew
        return heard if told is None else told

    def _record(self, known: dict[str, Any]) -> StepRecord:
        clipped, skipped = known.pop("clipped", 0.0), known.pop("skip", 0.0)
        return StepRecord(
            step=self._steps,
            time=time.time(),
            action="skip" if skipped else "clip" if clipped else "none",
            optimizer=self._index,
            **known,
        )

    def _empty(self, wait: bool = True) -> None:
        for delivery in self._outbox.take(wait):
            self._deliver(*delivery)

    def _deliver(self, record: StepRecord, stats: GradientStats, present: list[int] | None) -> None:
        self._last = record
        if self._recorder is not None:
            self._recorder.write(record, stats, present)


def _open(
    run: Any, optimizer: torch.optim.Optimizer, policy: Policy, on_nonfinite: str
) -> Recorder | None:
    return None if run is None else Recorder(run, facts_of(optimizer, policy.spec(), on_nonfinite))


def _nothing_heard() -> float:
    return math.nan


def _difference(saved: Iterable[str], present: Iterable[str]) -> str:
    gone, new = sorted(set(saved) - set(present)), sorted(set(present) - set(saved))
    return f"missing here {gone[:3]}, not saved {new[:3]}" if gone or new else "their order differs"


def _untraced(hook: Any) -> Any:
    return torch.compiler.disable(hook)  # type: ignore[no-untyped-call]


def _number(value: Any) -> float:
    """A float of whatever a loss or a learning rate may be; NaN where it is not one number."""
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError):
        return math.nan


def _is_on(value: Any, device: torch.device) -> bool:
    return isinstance(value, torch.Tensor) and value.device == device and value.numel() == 1


def _with_closure(
    args: tuple[Any, ...], kwargs: dict[str, Any], closure: Callable[[], Any]
) -> Arguments:
    if "closure" in kwargs:
        return args, {**kwargs, "closure": closure}
    return (args[0], closure, *args[2:]), kwargs


_WRAPPER: Any = torch.optim.Optimizer.profile_hook_step(lambda self: None).__code__
"""Code of the function that torch puts around every `step` to call hooks."""


def _inside_step_of(optimizer: torch.optim.Optimizer) -> bool:
    """True where a step of this optimizer is running further out: a `super().step()`.

    Told from a step that raised and left its mark by counting torch's wrappers around
    `step` among the callers.
    """
    steps = 0
    frame = sys._getframe(1)
    while frame is not None and steps < 2:
        steps += frame.f_code is _WRAPPER and frame.f_locals.get("self") is optimizer
        frame = frame.f_back  # type: ignore[assignment]
    return steps > 1
