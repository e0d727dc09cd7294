"""What stands inside an attached Keras optimizer.

The optimizer's class is replaced by a subclass of itself (`classes.py`), whose `apply`
comes here. `apply` is the one place that every way of training passes, and where a step
can still be dropped whole: iteration counter, averages and weight decay included.

With gradient accumulation `apply` sees micro-batches: a non-finite one is dropped there,
and clipping waits for `_clip_gradients`, which Keras calls with the average.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import keras
import numpy as np

from steadygrad.errors import UsageError
from steadygrad.keras import engines
from steadygrad.policies import Policy
from steadygrad.policies.stepping import CLIP, SKIP, Stepped, may_skip, measure, step

FIGURES = (
    "step",
    "norm",
    "threshold",
    "coef",
    "cosine",
    "action",
    "nonfinite",
    "clipped",
    "skipped",
)
"""What the variable ``figures`` holds; ``step`` counts those taken so far."""

LEAVES = ("norms", "max_abs", "nonfinite", "zeros")
"""The rows of the variable ``tensors``."""

MOMENTS = ("_velocities", "_accumulators")
"""What Keras' optimizers call their running mean (Adagrad: sum) of squared gradients."""


class Hook:
    """Measures, decides and acts inside one optimizer.

    Args:
        policy: decides.
        on_nonfinite: ``skip``, ``zero`` or ``propagate``.

    Attributes:
        variables: what must be saved and traced with the optimizer's own variables.
        names: the measured tensors', in order.
        hiding: the optimizer must not show these variables now.
        watcher: called with each step's outcome and its variables, while it is traced.
    """

    def __init__(self, policy: Policy, on_nonfinite: str) -> None:
        self.policy = policy
        self.on_nonfinite = on_nonfinite
        self.may_skip = on_nonfinite == "skip" or may_skip(policy)
        self.backend = engines.current()
        self.variables: list[Any] = []
        self.names: tuple[str, ...] = ()
        self.shapes: list[tuple[tuple[int, ...], str]] = []
        self.reduced = False
        self.hiding = False
        self.watcher: Callable[[Stepped, Sequence[Any]], None] | None = None
        self._key: Callable[[Any], Any] = id
        self._memory: dict[str, Any] = {}
        self._places: dict[Any, int] = {}

    def build(self, optimizer: Any, trainable: Sequence[Any]) -> None:
        """Make the variables; ``trainable`` are the optimizer's."""
        self._key = optimizer._var_key
        kept = [v for v in trainable if not optimizer._overwrite_variable_with_gradient(v)]
        self.names = tuple(str(getattr(v, "path", v.name)) for v in kept)
        self.shapes = [
            (tuple(v.shape), str(keras.backend.standardize_dtype(v.dtype))) for v in kept
        ]
        self._places = {self._key(v): place for place, v in enumerate(kept)}
        count = len(kept)
        first = np.zeros(len(FIGURES))
        first[FIGURES.index("threshold")] = np.inf
        first[[FIGURES.index("coef"), FIGURES.index("cosine")]] = 1.0
        self.figures = self._variable("figures", first)
        self.tensors = self._variable("tensors", np.full((len(LEAVES), count), np.nan))
        memory = self.policy.init(np, self.names, np.float64, np.int64)
        self._memory = {key: self._variable(key, np.asarray(memory[key])) for key in sorted(memory)}
        self.variables = [self.figures, self.tensors, *self._memory.values()]

    def _variable(self, name: str, value: Any) -> Any:
        kind = np.issubdtype(value.dtype, np.floating)
        return keras.Variable(
            value,
            dtype=self.backend.float_dtype if kind else self.backend.int_dtype,
            trainable=False,
            aggregation="only_first_replica",
            name="steadygrad_" + name.replace("/", "_"),
        )

    def apply(
        self,
        optimizer: Any,
        go: Callable[[list[Any], list[Any]], None],
        gradients: list[Any],
        trainable: list[Any],
    ) -> None:
        """One call of the optimizer's `apply`; ``go`` is what it does without us."""
        places = [
            i
            for i, (g, v) in enumerate(zip(gradients, trainable, strict=True))
            if g is not None and not optimizer._overwrite_variable_with_gradient(v)
        ]
        if not places:
            go(gradients, trainable)
            return
        with unscaled(optimizer) as scale:
            wanted = [gradients[i] if scale is None else gradients[i] / scale for i in places]
            wanted, self.reduced = self.backend.reduced(wanted)
            variables = [trainable[i] for i in places]
            if optimizer.gradient_accumulation_steps:
                kept, skip, note = self._check(optimizer, wanted, variables)
            else:
                kept, skip, note = self._step(optimizer, wanted, variables)
            for place, gradient in zip(places, kept, strict=True):
                gradients[place] = gradient
            self._guarded(optimizer, skip, lambda: go(gradients, trainable))
            self.reduced = False
        note()

    def _guarded(self, optimizer: Any, skip: Any, run: Callable[[], None]) -> None:
        if skip is None:
            run()
            return
        held = [*optimizer._trainable_variables, *optimizer.variables]
        self.backend.unless(skip, run, held)

    def _step(self, optimizer: Any, gradients: Sequence[Any], variables: Sequence[Any]) -> Any:
        """Measure, decide and act: new gradients, whether to skip, and what to note after."""
        with self.backend.engine.scope():
            done = self.decide(optimizer, gradients, variables)
            kept = self._relike(gradients, done.leaves)
        skip = done.skip if self.may_skip else None
        return kept, skip, lambda: self.note(done, variables)

    def _check(self, optimizer: Any, gradients: Sequence[Any], variables: Sequence[Any]) -> Any:
        """Drop a micro-batch that would make the sum non-finite."""
        if self.on_nonfinite == "propagate":
            return list(gradients), None, lambda: None
        engine = self.backend.engine
        with engine.scope():
            leaves = [self.backend.leaf(g) for g in gradients]
            if self.on_nonfinite == "zero":
                return self._relike(gradients, [engine.cleaned(x) for x in leaves]), None, _nothing
            sums = [
                g + self.backend.value(optimizer._accumulated_gradients[self._index(optimizer, v)])
                for g, v in zip(gradients, variables, strict=True)
            ]
            names = tuple(self.names[self._place_of(v)] for v in variables)
            stats = measure(engine, sums, names, self.policy.norm_type, full=False)
            count = engine.xp.sum(stats.nonfinite)
            skip = count > 0
        return list(gradients), skip, lambda: self._note_dropped(skip, count, stats.total_norm)

    @staticmethod
    def _index(optimizer: Any, variable: Any) -> int:
        return int(optimizer._get_variable_index(variable))

    def clip_average(self, optimizer: Any, gradients: Sequence[Any], variables: Any) -> list[Any]:
        """Clip what accumulation has averaged."""
        if may_skip(self.policy):
            raise UsageError(
                f"{self.policy.spec()} may skip a step, which cannot be undone once gradients "
                "are accumulated; use another method with gradient_accumulation_steps"
            )
        with self.backend.engine.scope():
            mode, self.on_nonfinite = self.on_nonfinite, "propagate"  # checked at every micro-batch
            try:
                done = self.decide(optimizer, gradients, variables)
            finally:
                self.on_nonfinite = mode
            kept = self._relike(gradients, done.leaves)
        self.note(done, variables)
        return kept

    def _relike(self, gradients: Sequence[Any], leaves: Sequence[Any]) -> list[Any]:
        return [self.backend.relike(g, x) for g, x in zip(gradients, leaves, strict=True)]

    def decide(self, optimizer: Any, gradients: Sequence[Any], variables: Sequence[Any]) -> Stepped:
        """What comes of gradients; call it inside the engine's scope."""
        engine = self.backend.engine
        leaves = [self.backend.leaf(gradient) for gradient in gradients]
        names = tuple(self.names[self._place_of(v)] for v in variables)
        memory = {key: self._wide(v) for key, v in self._memory.items()}
        beside = self._beside(optimizer, variables)
        return step(
            engine, self.policy, self.on_nonfinite, memory, leaves, names, beside, full=True
        )

    def _wide(self, variable: Any) -> Any:
        value = self.backend.value(variable)
        return self.backend.engine.widen(value) if "float" in str(variable.dtype) else value

    def _beside(self, optimizer: Any, variables: Sequence[Any]) -> dict[str, list[Any]]:
        found: dict[str, list[Any]] = {}
        if "weight" in self.policy.needs:
            found["weight"] = [self.backend.value(v) for v in variables]
        if self.policy.needs & {"second_moment", "step"}:
            owner = next((m for m in MOMENTS if getattr(optimizer, m, None)), None)
            moments = getattr(optimizer, owner) if owner else None
            found["second_moment"] = [
                None if moments is None else self.backend.value(moments[self._index(optimizer, v)])
                for v in variables
            ]
            seen = None if moments is None else keras.ops.convert_to_tensor(optimizer.iterations)
            found["step"] = [seen] * len(variables)
        return found

    def note(self, done: Stepped, variables: Sequence[Any]) -> None:
        """Write a step's figures and the policy's memory into the variables."""
        xp = self.backend.engine.xp
        with self.backend.engine.scope():
            before = self.backend.value(self.figures)
            clipped, skipped = done.action == CLIP, done.action == SKIP
            figures = self.backend.pack(
                [
                    before[0] + 1,
                    done.stats.total_norm,
                    done.threshold,
                    done.coef,
                    done.cosine,
                    done.action,
                    done.nonfinite,
                    before[7] + xp.astype(clipped, before.dtype),
                    before[8] + xp.astype(skipped, before.dtype),
                ],
                self.backend.float_dtype,
            )
            rows = [getattr(done.stats, name) for name in LEAVES]
            table = self._table(rows, variables)
            kinds = {k: self.backend.value(v).dtype for k, v in self._memory.items()}
            after = {k: xp.astype(done.state[k], kinds[k]) for k in self._memory}
        self.figures.assign(figures)
        self.tensors.assign(table)
        for key, variable in self._memory.items():
            variable.assign(after[key])
        if self.watcher is not None:
            self.watcher(done, variables)

    def _table(self, rows: Sequence[Any], variables: Sequence[Any]) -> Any:
        """Rows of figures over all tensors, NaN for those without a gradient."""
        xp = self.backend.engine.xp
        packed = self.backend.pack(rows, self.backend.float_dtype)
        count = len(self.names)
        if len(variables) == count:
            return packed
        present = [self._place_of(v) for v in variables]
        columns = [present.index(i) if i in present else len(present) for i in range(count)]
        gap = xp.full_like(packed[:, :1], float("nan"))
        return xp.take(xp.concat([packed, gap], axis=1), xp.asarray(columns), axis=1)

    def _place_of(self, variable: Any) -> int:
        return self._places[self._key(variable)]

    def _note_dropped(self, skip: Any, count: Any, norm: Any) -> None:
        """Count a dropped micro-batch as a skipped step; else leave the figures."""
        xp = self.backend.engine.xp
        with self.backend.engine.scope():
            before = self.backend.value(self.figures)
            dropped = self.backend.pack(
                [before[0] + 1, norm, before[2], 1.0, 1.0, SKIP, count, before[7], before[8] + 1],
                self.backend.float_dtype,
            )
            figures = xp.where(skip, dropped, before)
        self.figures.assign(figures)

    def note_unseen(self, optimizer: Any, gradients: Sequence[Any], trainable: Any) -> None:
        """Note a step that a `LossScaleOptimizer` dropped: its gradients never came here."""
        engine = self.backend.engine
        there = [g for g in gradients if g is not None]
        with engine.scope():
            leaves = [self.backend.leaf(g) for g in there]
            stats = measure(engine, leaves, tuple(map(str, range(len(there)))), 2.0, full=False)
            count = engine.xp.sum(stats.nonfinite)
            true = count > -1
        self._note_dropped(true, count, stats.total_norm)


def _nothing() -> None:
    """Nothing to note: the window's last micro-batch does."""


@contextmanager
def unscaled(optimizer: Any) -> Any:
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


def name_scope(optimizer: Any) -> AbstractContextManager[Any]:
    """Keras' scope for an optimizer's variables."""
    scope: AbstractContextManager[Any] = keras.name_scope(optimizer.name, caller=optimizer)
    return scope if scope is not None else nullcontext()
