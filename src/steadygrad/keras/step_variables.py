"""What an attached Keras optimizer holds in variables: the last step's figures, and the policy's
memory. They are saved and traced with the optimizer's own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import keras
import numpy as np

from steadygrad.keras import engines
from steadygrad.policies import Policy
from steadygrad.policies.gated import GATES, Gated
from steadygrad.policies.in_numpy import NUMPY, scalar
from steadygrad.policies.stepping import CLIP, SKIP, Stepped
from steadygrad.policies.wide import concat
from steadygrad.stats import GradientStats
from steadygrad.vocabulary import FIGURES

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from steadygrad.typing import Array

NUMBERS = (
    "step",
    "norm",
    "threshold",
    "coef",
    "cosine",
    "action",
    "nonfinite",
    "clipped",
    "skipped",
    "broken",
    "scale",
)
"""What the variable ``figures`` holds; ``step`` counts those taken so far, ``broken`` those
skipped for what was not finite (a `LossScaleOptimizer`'s own not counted); ``scale`` is a
`LossScaleOptimizer`'s in force at the step, which changes it afterwards."""

Placed = tuple[keras.Variable, "Array"]
"""A variable, and what is to be written into it."""


class StepVariables:
    """The variables of one optimizer, made once its own are known.

    Args:
        policy: whose memory is held.
        backend: reads and writes.

    Attributes:
        all: every one of them; empty before they are made.
        names: the measured tensors', in order.
        shapes: shape and dtype of each measured tensor.
        figures: `NUMBERS` of the last step.
        tensors: `FIGURES` of the last step, a column a tensor.
    """

    def __init__(self, policy: Policy, backend: engines.Backend) -> None:
        self.all: list[keras.Variable] = []
        self.names: tuple[str, ...] = ()
        self.shapes: list[tuple[tuple[int, ...], str]] = []
        self._policy, self._backend = policy, backend
        self._memory: dict[str, keras.Variable] = {}
        self._places: dict[object, int] = {}

    def build(self, optimizer: keras.Optimizer, trainable: Sequence[keras.Variable]) -> None:
        """Make the variables; ``trainable`` are the optimizer's."""
        self._key = optimizer._var_key
        written = [v for v in trainable if not optimizer._overwrite_variable_with_gradient(v)]
        self.names = tuple(str(getattr(v, "path", v.name)) for v in written)
        self.shapes = [
            (tuple(v.shape), str(keras.backend.standardize_dtype(v.dtype))) for v in written
        ]
        self._places = {self._key(v): place for place, v in enumerate(written)}
        count = len(written)
        first = np.zeros(len(NUMBERS))
        first[NUMBERS.index("threshold")] = np.inf
        first[[NUMBERS.index(name) for name in ("coef", "cosine", "scale")]] = 1.0
        self.figures = self._variable("figures", first)
        self.tensors = self._variable("tensors", np.full((len(FIGURES), count), np.nan))
        memory = self._policy.init(NUMPY, self.names, np.float64, np.int64)
        self._memory = {key: self._variable(key, np.asarray(memory[key])) for key in sorted(memory)}
        self.all = [self.figures, self.tensors, *self._memory.values()]

    def _variable(self, name: str, value: NDArray[np.generic]) -> keras.Variable:
        kind = np.issubdtype(value.dtype, np.floating)
        return keras.Variable(
            value,
            dtype=self._backend.float_dtype if kind else self._backend.int_dtype,
            trainable=False,
            aggregation="only_first_replica",
            name="steadygrad_" + name.replace("/", "_"),
        )

    def memory(self) -> dict[str, Array]:
        """The policy's memory, in the widest dtypes there are."""
        return {key: self._wide(variable) for key, variable in self._memory.items()}

    def _wide(self, variable: keras.Variable) -> Array:
        value = self._backend.value(variable)
        return self._backend.engine.widen(value) if "float" in str(variable.dtype) else value

    def names_of(self, variables: Sequence[keras.Variable]) -> tuple[str, ...]:
        """The names of some of the measured tensors."""
        return tuple(self.names[self._place_of(v)] for v in variables)

    def after(
        self, done: Stepped, variables: Sequence[keras.Variable], scale: Array | float
    ) -> list[Placed]:
        """What a step's figures and the policy's memory are to be, inside the engine's scope.

        Args:
            done: the step.
            variables: those with a gradient.
            scale: a `LossScaleOptimizer`'s.
        """
        xp = self._backend.engine.xp
        before = self._backend.value(self.figures)
        clipped, skipped = done.action == CLIP, done.action == SKIP
        broken = xp.logical_and(skipped, done.nonfinite > 0)
        figures = self._backend.pack(
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
                before[9] + xp.astype(broken, before.dtype),
                scale,
            ],
            self._backend.float_dtype,
        )
        table = self._table([getattr(done.stats, name) for name in FIGURES], variables)
        kinds = {k: self._backend.value(v).dtype for k, v in self._memory.items()}
        after = [(v, xp.astype(done.state[k], kinds[k])) for k, v in self._memory.items()]
        return [(self.figures, figures), (self.tensors, table), *after]

    def after_unseen(self, stats: GradientStats, scale: Array | float) -> list[Placed]:
        """What the figures are to be after a step that was dropped before it came here."""
        was = self._backend.value(self.figures)
        count = self._backend.engine.xp.sum(stats.nonfinite)
        skip: list[Array | float] = [stats.total_norm, was[2], 1.0, 1.0, SKIP, count, was[7]]
        after = [was[0] + 1, *skip, was[8] + 1, was[9], scale]
        return [(self.figures, self._backend.pack(after, self._backend.float_dtype))]

    def _table(self, rows: Sequence[Array], variables: Sequence[keras.Variable]) -> Array:
        """Rows of figures over all tensors, NaN for those without a gradient."""
        xp = self._backend.engine.xp
        packed = self._backend.pack(rows, self._backend.float_dtype)
        count = len(self.names)
        if len(variables) == count:
            return packed
        present = [self._place_of(v) for v in variables]
        columns = [present.index(i) if i in present else len(present) for i in range(count)]
        gap = xp.full_like(packed[:, :1], float("nan"))
        return xp.take(concat(xp, [packed, gap], axis=1), xp.asarray(columns), axis=1)

    def _place_of(self, variable: keras.Variable) -> int:
        return self._places[self._key(variable)]

    @property
    def own_variables(self) -> list[keras.Variable]:
        """What tells of steps, and the limits: of no training's state, and never put back."""
        gates = [self._memory[key] for key in GATES if key in self._memory]
        return [self.figures, self.tensors, *gates] if self.all else []

    def set_gates(self, limits: Mapping[str, float]) -> None:
        """Set limits that the next step heeds, and open the others."""
        for key, usual in GATES.items():
            if isinstance(self._policy, Gated) and key in self._memory:
                self._memory[key].assign(limits.get(key, usual))

    def seen(self) -> dict[str, float]:
        """The figures, on the host."""
        if not self.all:
            return {**dict.fromkeys(NUMBERS, 0.0), "coef": 1.0, "cosine": 1.0, "scale": 1.0}
        values = engines.to_numpy(self.figures).astype(np.float64).tolist()
        return dict(zip(NUMBERS, values, strict=True))

    def stats(self) -> GradientStats | None:
        """Per-tensor figures of the last step, on the host; None before the first."""
        seen = self.seen()
        if seen["step"] == 0:
            return None
        table = engines.to_numpy(self.tensors).astype(np.float64)
        rows = dict(zip(FIGURES, table, strict=True))
        bad, zeros = (np.nan_to_num(rows[k]).astype(np.int64) for k in ("nonfinite", "zeros"))
        sizes = tuple(int(np.prod(shape)) for shape, _ in self.shapes)
        norm, p = scalar(seen["norm"]), self._policy.norm_type
        return GradientStats(self.names, rows["norms"], rows["max_abs"], bad, zeros, sizes, norm, p)
