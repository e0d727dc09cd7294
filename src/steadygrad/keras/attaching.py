"""`attach`: one line that makes a Keras optimizer clip, skip and tell."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

import keras
import numpy as np

from steadygrad.errors import AttachError
from steadygrad.keras import classes
from steadygrad.keras.engines import to_numpy
from steadygrad.keras.hook import Hook
from steadygrad.keras.sampling import Sampler, owners, recurrent_lengths
from steadygrad.live.handle import Handle
from steadygrad.live.session import is_interactive, open_writer, say_detached
from steadygrad.policies.choice import Clip, resolve
from steadygrad.runlog import RunWriter, StepRecord, TensorInfo
from steadygrad.runlog.facts import versions_of
from steadygrad.stats import GradientStats
from steadygrad.vocabulary import ACTIONS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

CONFLICTS = ("clipnorm", "clipvalue", "global_clipnorm")


def attach(
    optimizer: keras.Optimizer,
    clip: Clip = "norm:1.0",
    *,
    model: keras.Model | None = None,
    on_nonfinite: str | None = None,
    run: str | os.PathLike[str] | RunWriter | None = None,
) -> Steady:
    """Clip and watch gradients inside a Keras optimizer, on any backend.

    The optimizer is changed in place, and is saved and loaded with its policy. A step with
    NaN or inf is dropped whole: weights, slots and the iteration counter stay bit-identical
    (a BatchNormalization's moving statistics are the forward pass's, and do not).

    Args:
        optimizer: any Keras optimizer; inside a `LossScaleOptimizer` the inner one is meant.
        clip: a spec such as ``"norm:1.0"``, a policy, or ``{name pattern: spec}``.
        model: the compiled model, needed where it has trained already: its compiled
            step is then made again.
        on_nonfinite: ``"skip"`` (the default, save for ``clip="none"``), ``"zero"``,
            ``"propagate"`` or ``"raise"``: the step is dropped, and what next comes to the host
            raises `NonFiniteError`: `apply` itself where nothing is compiled, else
            `GradientMonitor` after the batch, `Steady.record`, `Steady.check`.
        run: a path for a new run file or an open `RunWriter`; `GradientMonitor` fills it in
            `fit`, `Steady.record` in a loop of your own.

    Returns:
        A handle.

    Raises:
        AttachError: no Keras optimizer, attached already, it clips by itself, or it has
            trained and no ``model`` is given.
        UsageError: an option that does not exist.

    Example:
        >>> import keras
        >>> optimizer = keras.optimizers.SGD(1.0)
        >>> steady = attach(optimizer, clip="norm:1.0")
        >>> weight = keras.Variable([0.0, 0.0])
        >>> optimizer.apply([keras.ops.convert_to_tensor([3.0, 4.0])], [weight])
        >>> steady.last.norm, steady.last.action
        (5.0, 'clip')
    """
    outer, inner = unwrap(optimizer)
    _refuse_conflicts(inner)
    if classes.hook_of(inner) is not None and is_interactive():
        classes.remove(inner)  # a cell was run again
        if outer is not None:
            classes.stop_telling(outer)
        say_detached(type(inner).__name__)
    elif classes.hook_of(inner) is not None:
        raise AttachError("this optimizer is attached already; detach its first handle, or keep it")
    choice = resolve(clip, on_nonfinite, type(inner).__name__)
    _refuse_traced(inner, model)
    classes.install(inner, Hook(choice.policy, choice.on_nonfinite))
    if outer is not None:
        classes.tell(outer)
    _retrace(model)
    return Steady(inner, outer, model, run)


class Steady(Handle):
    """Handle of an attached Keras optimizer; also a context manager that detaches.

    Args:
        optimizer: the attached one.
        outer: the `LossScaleOptimizer` around it, if any.
        model: the model that trains with it, if known.
        run: where `record` writes.

    Attributes:
        writer: of the run file; None without one.
    """

    how_to_record = "GradientMonitor(run='run.db') or attach(optimizer, ..., run='run.db')"

    def __init__(
        self,
        optimizer: keras.Optimizer,
        outer: keras.Optimizer | None,
        model: keras.Model | None,
        run: str | os.PathLike[str] | RunWriter | None,
    ) -> None:
        self.optimizer = optimizer
        self._outer = outer
        self._model = model
        self._seen = model
        self.writer: RunWriter | None = None
        self._spec = self.hook.policy.spec()
        self._owned = False
        self._ids: NDArray[np.int64] | None = None
        self._sampler: Sampler | None = None
        self._start: dict[int, NDArray[np.generic]] = {}
        self._recorded = 0
        if run is not None:
            self.write_to(run)

    def write_to(self, run: str | os.PathLike[str] | RunWriter) -> None:
        """Have `record` write into a run file.

        Args:
            run: a path for a new file or an open `RunWriter`.

        Raises:
            RunFileError: a file stands at the path.
        """
        self._owned = not isinstance(run, RunWriter)
        self.writer = open_writer(run)
        self.writer.update_info(**self._facts())

    def flush(self) -> None:
        """Wait until every recorded step can be read back from the run file."""
        if self.writer is not None:
            self.writer.flush()

    def _recorded_by(self) -> RunWriter | None:
        return self.writer

    def _policy(self) -> str:
        return self._spec

    def _last(self) -> StepRecord | None:
        hook = classes.hook_of(self.optimizer)
        return None if hook is None or hook.seen()["step"] == 0 else self.last

    def look_at(self, model: keras.Model) -> None:
        """Learn which layers own the weights; `GradientMonitor` calls it in `fit`.

        Where nothing has trained yet, the weights that training starts from are kept until
        the first step is recorded: TensorFlow builds the optimizer no earlier.

        Args:
            model: the one that trains.
        """
        self._seen = model
        if self.writer is not None and self.hook.seen()["step"] == 0:
            self._start = {id(v): to_numpy(v) for v in model.trainable_variables}

    @property
    def hook(self) -> Hook:
        """What stands inside the optimizer.

        Raises:
            AttachError: it has been detached.
        """
        found = classes.hook_of(self.optimizer)
        if found is None:
            raise AttachError("this handle has been detached; attach the optimizer again")
        return found

    @property
    def last(self) -> StepRecord:
        """The last step; reads the device. After `fit` on JAX, or inside a callback after
        ``model.jax_state_sync()``."""
        seen = self.hook.seen()
        return StepRecord(
            step=int(seen["step"]) - 1,
            time=time.time(),
            norm=seen["norm"],
            threshold=seen["threshold"],
            coef=seen["coef"],
            cosine=seen["cosine"],
            action=ACTIONS[int(seen["action"])],
            nonfinite=int(seen["nonfinite"]),
            lr=self._learning_rate(),
            loss_scale=self._loss_scale(),
        )

    @property
    def stats(self) -> GradientStats | None:
        """Per-tensor figures of the last step; None before the first."""
        return self.hook.stats()

    @property
    def clip_rate(self) -> float:
        """Share of the steps so far that were clipped; 0 before the first."""
        seen = self.hook.seen()
        return seen["clipped"] / seen["step"] if seen["step"] else 0.0

    def check(self) -> None:
        """Raise if ``on_nonfinite="raise"`` and a step was dropped since the last call.

        Raises:
            NonFiniteError: one was; names the tensors.
        """
        self.hook.check()

    def record(self, loss: float = float("nan")) -> bool:
        """Write the last step into the run file; a step that is written already is left out.

        Args:
            loss: this step's.

        Returns:
            Whether there was a step to write.

        Raises:
            NonFiniteError: ``on_nonfinite="raise"``, and a step was dropped.
            TrainingStopped: an alert asked for it.
        """
        if self.writer is None or not self.hook.variables:
            self.check()
            return False
        last = self.last
        if last.step < self._recorded:
            return False
        began = time.perf_counter()
        self._recorded = last.step + 1
        rows = to_numpy(self.hook.tensors).astype(np.float64)
        full = StepRecord(**{**vars(last), "loss": float(loss)})
        self.writer.write_step(full, self._tensor_ids(self.writer), *rows)
        self._sample(self.writer, self._recorded)
        self.writer.overhead_seconds += time.perf_counter() - began
        self.check()
        self.writer.stop_if_asked()
        return True

    def state_dict(self) -> dict[str, NDArray[np.generic]]:
        """The policy's memory and the counters, as NumPy arrays; a saved model holds them too."""
        return {v.name: to_numpy(v) for v in self.hook.variables}

    def load_state_dict(self, state: Mapping[str, NDArray[np.generic]]) -> None:
        """Take back what `state_dict` gave.

        Args:
            state: it.

        Raises:
            AttachError: the optimizer is not built, or was built for other tensors.
        """
        if not self.hook.variables:
            raise AttachError(
                "build the optimizer first: optimizer.build(model.trainable_variables)"
            )
        for variable in self.hook.variables:
            value = state.get(variable.name)
            if value is None or tuple(np.shape(value)) != tuple(variable.shape):
                raise AttachError(
                    f"the state holds no {variable.name} of shape {tuple(variable.shape)}; it is "
                    "from another policy or model"
                )
            variable.assign(value)
        self.hook.reloaded()

    def detach(self) -> None:
        """Make the optimizer a plain one again, and close the run file opened here."""
        if classes.hook_of(self.optimizer) is not None:
            classes.remove(self.optimizer)
            if self._outer is not None:
                classes.stop_telling(self._outer)
            _retrace(self._model)
        if self._owned and self.writer is not None:
            self.writer.close()

    def __enter__(self) -> Steady:
        return self

    def __exit__(self, *_: object) -> None:
        self.detach()

    def _tensor_ids(self, run: RunWriter) -> NDArray[np.int64]:
        if self._ids is None:
            self._ids = np.asarray(run.add_tensors(self._infos()), np.int64)
        return self._ids

    def _sample(self, run: RunWriter, step: int) -> None:
        """Measure the weights that a step starts from, where one is due."""
        if self._sampler is None:
            held, lengths = self._held(), recurrent_lengths(self._seen)
            known = [lengths.get(id(v), 0) for v in held]
            self._sampler = Sampler(run, held, self._tensor_ids(run), known)
            start = [self._start[id(v)] for v in held if id(v) in self._start]
            self._start = {}
            if step == 1 and len(start) == len(held):
                self._sampler.at_step(0, start)
        self._sampler.at_step(step)

    def _held(self) -> list[keras.Variable]:
        """The measured variables, in the order of the hook's names."""
        one = self.optimizer
        held = one._trainable_variables
        return [v for v in held if not one._overwrite_variable_with_gradient(v)]

    def _learning_rate(self) -> float:
        try:
            return float(keras.ops.convert_to_numpy(self.optimizer.learning_rate))
        except AttributeError:  # a MultiOptimizer has several
            return float("nan")

    def _loss_scale(self) -> float:
        if self._outer is not None and self._outer.built:
            return float(to_numpy(self._outer.dynamic_scale))
        return float(self.optimizer.loss_scale_factor or 1.0)

    def _infos(self) -> list[TensorInfo]:
        kinds = owners(self._seen)
        rows = zip(self.hook.names, self.hook.shapes, self._held(), strict=True)
        return [
            TensorInfo(name, shape, dtype, kinds.get(id(variable), ""))
            for name, (shape, dtype), variable in rows
        ]

    def _facts(self) -> dict[str, object]:
        return {
            "framework": "keras",
            "versions": versions_of("keras", keras.backend.backend(), "numpy"),
            "backend": keras.backend.backend(),
            "policy": self.hook.policy.spec(),
            "on_nonfinite": "raise" if self.hook.raises else self.hook.on_nonfinite,
            "observed_by": "attach",
            "optimizers": [{"class": type(self.optimizer).plain.__name__, "index": 0}],
        }


def unwrap(optimizer: keras.Optimizer) -> tuple[keras.Optimizer | None, keras.Optimizer]:
    """The loss scaler, or None, and the optimizer that takes the steps."""
    if not isinstance(optimizer, keras.optimizers.Optimizer):
        raise AttachError(
            f"attach needs a Keras optimizer, got {type(optimizer).__name__}; type "
            "steadygrad.keras.attach(model.optimizer, clip='norm:1.0')"
        )
    if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        return optimizer, optimizer.inner_optimizer
    return None, optimizer


def _refuse_conflicts(optimizer: keras.Optimizer) -> None:
    inner = getattr(optimizer, "optimizers", None) or []
    for one in (optimizer, *inner):
        for name in CONFLICTS:
            value = getattr(one, name, None)
            if value:
                raise AttachError(
                    f"{type(one).__name__} clips by itself ({name}={value}), before steadygrad "
                    f"could: leave {name} out, type attach(optimizer, clip={_same(name, value)!r})"
                )


def _same(name: str, value: float) -> str:
    spec = {"clipnorm": "tensor-norm", "clipvalue": "value", "global_clipnorm": "norm"}[name]
    return f"{spec}:{value}"


def _refuse_traced(optimizer: keras.Optimizer, model: keras.Model | None) -> None:
    """Refuse an optimizer whose compiled step would go on without us."""
    eager = keras.backend.backend() == "torch"
    if model is None and not eager and optimizer.built and int(to_numpy(optimizer._iterations)):
        raise AttachError(
            "this optimizer has trained already, and its compiled step would go on unclipped; type "
            "attach(optimizer, ..., model=model), or attach before the first step"
        )


def _retrace(model: keras.Model | None) -> None:
    """Have a model compile its training step again."""
    if model is not None:
        model.train_function = None
