"""What stands inside an attached Keras optimizer.

The optimizer's class is replaced by a subclass of itself (`classes.py`), whose `apply`
comes here. `apply` is the one place that every way of training passes, and where a step
can still be dropped whole: iteration counter, averages and weight decay included.

With gradient accumulation `apply` sees micro-batches. Each is decided on as if it were the
window's last, on the average that Keras would form with it; of that decision a non-finite
micro-batch is dropped, and the rest counts where it is the last indeed: Keras then asks
`_clip_gradients` for the average and is handed the one clipped here.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import keras

from steadygrad.errors import AttachError, NonFiniteError
from steadygrad.keras import engines
from steadygrad.keras.idle import OptimizerUse
from steadygrad.keras.internals import MOMENTS
from steadygrad.keras.step_variables import StepVariables
from steadygrad.policies import Policy
from steadygrad.policies.choice import Choice, skips_by_itself
from steadygrad.policies.gated import Gated
from steadygrad.policies.stepping import StepGradients, Stepped, measure, step
from steadygrad.stats import describe_nonfinite
from steadygrad.vocabulary import OnNonfinite

if TYPE_CHECKING:
    from collections.abc import Iterator

    from steadygrad.typing import Array

WAITS, STEPS, DROPPED = 0, 1, 2
"""What a micro-batch is: one that is added up, the last of a window, one left out of it."""

Gradients = list["Array | None"]
"""One a variable; None for those that the loss does not reach."""

Acted = tuple["list[Array]", "Array | None", Callable[[], None]]
"""Gradients to go on with, whether to skip (None: it cannot be), and what notes the step after."""


class Hook:
    """Measures, decides and acts inside one optimizer.

    Args:
        policy: decides.
        on_nonfinite: ``skip``, ``raise``, ``zero`` or ``propagate``.

    Attributes:
        choice: the policy, and what is done where a gradient is not finite.
        raises: a step that was dropped for what is not finite ends the training.
        backend: Keras' backend in use.
        state: what must be saved and traced with the optimizer's own variables.
        reduced: gradients are the sums over all replicas already.
        only_observes: gradients are read alone, and the optimizer's own path is left as it is.
        hiding: the optimizer must not show these variables now.
        watcher: called with each step's outcome, its variables and what its micro-batch is
            (None without accumulation), while it is traced.
        incoming: what gradients are passed through before anything else.
        built: called with the names, once they are known.
        average: clipped gradients of the window that is being closed.
        use: whether gradients came here.
        scale: of the `LossScaleOptimizer` at work, which divides by it before it comes here.
    """

    def __init__(self, policy: Policy, on_nonfinite: OnNonfinite) -> None:
        self.only_observes = Choice(policy, on_nonfinite).only_observes
        self.raises = on_nonfinite == "raise"
        self.choice = Choice(policy, "skip" if self.raises else on_nonfinite)
        self.backend = engines.current()
        self.state = StepVariables(policy, self.backend)
        self.reduced = False
        self.hiding = False
        self.watcher: Callable[[Stepped, Sequence[keras.Variable], Array | None], None] | None = (
            None
        )
        self.built: Callable[[tuple[str, ...]], None] = lambda _: None
        self.incoming: Callable[[Gradients], Gradients] = list
        self.average: list[Array] = []
        self.use = OptimizerUse()
        self.scale: Array | float = 1.0
        self._broken_so_far = 0.0

    @property
    def policy(self) -> Policy:
        """What decides."""
        return self.choice.policy

    @property
    def may_skip(self) -> bool:
        """Whether a step can be dropped whole."""
        return self.choice.on_nonfinite == "skip" or skips_by_itself(self.policy)

    def build(self, optimizer: keras.Optimizer, trainable: Sequence[keras.Variable]) -> None:
        """Make the variables; ``trainable`` are the optimizer's."""
        _refuse_accumulating_members(optimizer)
        if not trainable and self.watcher is None:
            self.use.tell_of_no_variables(type(optimizer).plain.__name__)
        self.state.build(optimizer, trainable)
        self.built(self.state.names)

    def apply(
        self,
        optimizer: keras.Optimizer,
        go: Callable[[Gradients, list[keras.Variable]], None],
        gradients: Gradients,
        trainable: list[keras.Variable],
    ) -> None:
        """One call of the optimizer's `apply`; ``go`` is what it does without us."""
        gradients = self.incoming(gradients)
        present = {
            i: g
            for i, (g, v) in enumerate(zip(gradients, trainable, strict=True))
            if g is not None and not optimizer._overwrite_variable_with_gradient(v)
        }
        if not present:
            go(gradients, trainable)
            return
        self.use.came = True
        if self.only_observes:
            self._observe(optimizer, go, gradients, trainable, present)
            return
        with unscaled(optimizer) as scale:
            wanted = [g if scale is None else g / scale for g in present.values()]
            wanted, self.reduced = self.backend.reduced(wanted)
            variables = [trainable[i] for i in present]
            if optimizer.gradient_accumulation_steps:
                clipped, skip, note = self._accumulate(optimizer, wanted, variables)
            else:
                clipped, skip, note = self._step(optimizer, wanted, variables)
            for place, gradient in zip(present, clipped, strict=True):
                gradients[place] = gradient
            self._guarded(optimizer, skip, lambda: go(gradients, trainable))
            self.reduced = False
        note()

    def _observe(
        self,
        optimizer: keras.Optimizer,
        go: Callable[[Gradients, list[keras.Variable]], None],
        gradients: Gradients,
        trainable: list[keras.Variable],
        present: Mapping[int, Array],
    ) -> None:
        """Measure beside a step that is taken with what it was given, untouched."""
        variables = [trainable[i] for i in present]
        wanted = [self.backend.unread(gradient) for gradient in present.values()]
        scale = optimizer.loss_scale_factor
        if scale is not None:
            wanted = [self.backend.quotient(gradient, scale) for gradient in wanted]
        wanted, _ = self.backend.reduced(wanted)
        kind, engine = None, self.backend.engine
        with engine.scope():
            if optimizer.gradient_accumulation_steps:
                wanted = self._average_with(optimizer, wanted, variables)
                kind = engine.xp.where(self._closes(optimizer), STEPS, WAITS)
            done = self.decide(optimizer, wanted, variables)
        go(gradients, trainable)
        self.note(done, variables, kind)

    def _closes(self, optimizer: keras.Optimizer) -> Array:
        """Whether this micro-batch is its window's last."""
        every: int = optimizer.gradient_accumulation_steps
        count = self.backend.value(optimizer._iterations) + 1
        return count % every == 0

    def _guarded(
        self, optimizer: keras.Optimizer, skip: Array | None, run: Callable[[], None]
    ) -> None:
        if skip is None:
            run()
            return
        variables = [*optimizer._trainable_variables, *optimizer.variables]
        self.backend.unless(skip, run, variables)

    def _step(
        self,
        optimizer: keras.Optimizer,
        gradients: Sequence[Array],
        variables: Sequence[keras.Variable],
    ) -> Acted:
        """Measure, decide and act: new gradients, whether to skip, and what to note after."""
        with self.backend.engine.scope():
            done = self.decide(optimizer, gradients, variables)
            clipped = self._relike(gradients, done.leaves)
        skip = done.skip if self.may_skip else None
        return clipped, skip, lambda: self.note(done, variables)

    def _accumulate(
        self,
        optimizer: keras.Optimizer,
        gradients: Sequence[Array],
        variables: Sequence[keras.Variable],
    ) -> Acted:
        """One micro-batch: decide on the window's average as if this were its last."""
        engine = self.backend.engine
        with engine.scope():
            if self.choice.on_nonfinite == "zero":
                cleaned = [engine.cleaned(self.backend.leaf(g)) for g in gradients]
                gradients = self._relike(gradients, cleaned)
            done = self.decide(
                optimizer, self._average_with(optimizer, gradients, variables), variables
            )
            self.average = done.leaves
            kind = engine.xp.where(self._closes(optimizer), STEPS, WAITS)
            if self.choice.on_nonfinite == "skip":
                kind = engine.xp.where(done.nonfinite > 0, DROPPED, kind)
            window = engine.xp.logical_and(kind == STEPS, done.skip)
            skip = engine.xp.logical_or(kind == DROPPED, window) if self.may_skip else None

        def note() -> None:
            if skips_by_itself(self.policy):
                self._forget_window(optimizer, window)
            self.note(done, variables, kind)

        return list(gradients), skip, note

    def _average_with(
        self,
        optimizer: keras.Optimizer,
        gradients: Sequence[Array],
        variables: Sequence[keras.Variable],
    ) -> list[Array]:
        """What Keras would form of a window that ends with these gradients."""
        every = optimizer.gradient_accumulation_steps
        return [
            (self.backend.dense(g) + self.backend.value(sums)) / every
            for g, sums in zip(gradients, accumulators(optimizer, variables), strict=True)
        ]

    def _forget_window(self, optimizer: keras.Optimizer, window: Array) -> None:
        """Where a whole window is skipped, take it back: its sums, and its micro-batches' count."""
        iterations = optimizer._iterations
        sums = [one for one in optimizer._accumulated_gradients if one is not None]

        def forget() -> None:
            optimizer._backend_reset_gradient_accumulators()
            iterations.assign(iterations - (optimizer.gradient_accumulation_steps - 1))

        unfinished = self.backend.engine.xp.logical_not(window)
        self.backend.unless(unfinished, forget, [*sums, iterations])

    @staticmethod
    def _index(optimizer: keras.Optimizer, variable: keras.Variable) -> int:
        return int(optimizer._get_variable_index(variable))

    def _relike(self, gradients: Sequence[Array], leaves: Sequence[Array]) -> list[Array]:
        return [self.backend.relike(g, x) for g, x in zip(gradients, leaves, strict=True)]

    def decide(
        self,
        optimizer: keras.Optimizer,
        gradients: Sequence[Array],
        variables: Sequence[keras.Variable],
    ) -> Stepped:
        """Measure gradients, decide and act; call it inside the engine's scope."""
        engine = self.backend.engine
        leaves = [self.backend.leaf(gradient) for gradient in gradients]
        names, memory = self.state.names_of(variables), self.state.memory()
        beside = self._beside(optimizer, variables)
        return step(engine, self.choice, memory, StepGradients(leaves, names, beside), full=True)

    def _beside(
        self, optimizer: keras.Optimizer, variables: Sequence[keras.Variable]
    ) -> dict[str, list[Array | None]]:
        columns: dict[str, list[Array | None]] = {}
        if "weight" in self.policy.needs:
            columns["weight"] = [self.backend.value(v) for v in variables]
        if self.policy.needs & {"second_moment", "step"}:
            owner = next((m for m in MOMENTS if getattr(optimizer, m, None)), None)
            moments = getattr(optimizer, owner) if owner else None
            columns["second_moment"] = [
                None if moments is None else self.backend.value(moments[self._index(optimizer, v)])
                for v in variables
            ]
            seen = None if moments is None else keras.ops.convert_to_tensor(optimizer.iterations)
            columns["step"] = [seen] * len(variables)
        return columns

    def note(
        self, done: Stepped, variables: Sequence[keras.Variable], kind: Array | None = None
    ) -> None:
        """Write a step's figures and the policy's memory into the variables.

        Args:
            done: the step.
            variables: those with a gradient.
            kind: what its micro-batch is; None without accumulation.
        """
        xp = self.backend.engine.xp
        with self.backend.engine.scope():
            written = self.state.after(done, variables, self.scale)
            if kind is not None:
                counts = kind != WAITS
                written = [(v, xp.where(counts, x, self.backend.value(v))) for v, x in written]
        for variable, value in written:
            variable.assign(value)
        if self.watcher is not None:
            self.watcher(done, variables, kind)
        if self.raises and self.backend.is_known(self.backend.value(self.state.figures)):
            self.check()  # nothing is compiled: at once

    def check(self) -> None:
        """Raise where ``on_nonfinite`` says so and a step was dropped since the last call.

        Raises:
            NonFiniteError: one was; names the tensors if it was the last step.
        """
        if not self.raises or not self.state.all:
            return
        broken, before = self._broken(), self._broken_so_far
        self._broken_so_far = broken
        if broken > before:
            stats = self.state.stats()
            assert stats is not None
            step = int(self.state.seen()["step"]) - 1
            raise NonFiniteError(describe_nonfinite(stats, step))

    def _broken(self) -> float:
        return self.state.seen()["broken"] if self.state.all else 0.0

    def reloaded(self) -> None:
        """The variables hold another run's figures now."""
        self._broken_so_far = self._broken()
        self.state.set_gates({})

    @property
    def gated(self) -> bool:
        """Whether limits can be set from the host."""
        return isinstance(self.policy, Gated)

    def note_unseen(self, replicas: Sequence[Sequence[Array | None]]) -> None:
        """Note a step that a `LossScaleOptimizer` dropped: its gradients never came here.

        Args:
            replicas: the gradients of each of them; their sum is measured.
        """
        engine = self.backend.engine
        there = [g for g in replicas[0] if g is not None]
        if len(replicas) > 1:
            parts = [[self.backend.dense(g) for g in part if g is not None] for part in replicas]
            there = [functools.reduce(operator.add, same) for same in zip(*parts, strict=True)]
        with engine.scope():
            leaves = [self.backend.leaf(g) for g in there]
            stats = measure(engine, leaves, tuple(map(str, range(len(there)))), 2.0, full=False)
            written = self.state.after_unseen(stats, self.scale)
        for variable, value in written:
            variable.assign(value)


def accumulators(
    optimizer: keras.Optimizer, variables: Sequence[keras.Variable]
) -> list[keras.Variable]:
    """The variables in which a built optimizer adds up the gradients of these.

    Args:
        optimizer: one with ``gradient_accumulation_steps``.
        variables: some of its own.

    Returns:
        One for each.
    """
    sums = optimizer._accumulated_gradients
    return [sums[int(optimizer._get_variable_index(v))] for v in variables]


def _refuse_accumulating_members(optimizer: keras.Optimizer) -> None:
    for one in getattr(optimizer, "_inner_optimizers", []):
        if one.gradient_accumulation_steps:
            raise AttachError(
                f"{type(one).__name__} inside a MultiOptimizer accumulates gradients by itself "
                f"(gradient_accumulation_steps={one.gradient_accumulation_steps}), so no step has "
                "one norm; leave that out, or attach to single optimizers"
            )


@contextmanager
def unscaled(optimizer: keras.Optimizer) -> Iterator[Array | None]:
    """The optimizer's static loss scale, taken out while we divide by it ourselves."""
    scale = optimizer.loss_scale_factor
    if scale is None:
        yield None
        return
    optimizer.loss_scale_factor = None
    try:
        yield scale
    finally:
        optimizer.loss_scale_factor = scale
