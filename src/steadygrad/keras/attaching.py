"""`attach`: one line that makes a Keras optimizer clip, skip and tell."""

from __future__ import annotations

import math
import os
import time
import weakref
from typing import TYPE_CHECKING

import keras
import numpy as np

from steadygrad.errors import (
    AttachError,
    NoGradientsWarning,
    SpecError,
    SteadyGradWarning,
    UsageError,
)
from steadygrad.keras import classes
from steadygrad.keras.criterion import criterion_of
from steadygrad.keras.engines import to_numpy
from steadygrad.keras.hook import Hook
from steadygrad.keras.recovering import KerasRecovery
from steadygrad.keras.sampling import VariableSampler, owners, recurrent_lengths
from steadygrad.live.handle import Handle
from steadygrad.live.session import is_interactive, open_writer, say_detached
from steadygrad.policies.choice import Clip, policy_of, resolve
from steadygrad.policies.gated import Gated
from steadygrad.policies.groups import BY_GROUP, Groups
from steadygrad.policies.idle_groups import idle_classes, idle_patterns
from steadygrad.policies.stepping import SKIP
from steadygrad.processes import writes_for_all
from steadygrad.recovery.compiled import NO_FOLDER, Again, FinishedStep
from steadygrad.recovery.events import RecoveryEvent
from steadygrad.recovery.ladder import Ladder, parse_ladder
from steadygrad.runlog import RunWriter, StepRecord, TensorInfo
from steadygrad.runlog.facts import versions_of
from steadygrad.runlog.notice import warn
from steadygrad.stats import GradientStats
from steadygrad.typing import internal
from steadygrad.vocabulary import ACTIONS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

    from steadygrad.policies import Policy

CONFLICTS = ("clipnorm", "clipvalue", "global_clipnorm")


def attach(
    optimizer: keras.Optimizer,
    clip: Clip = "norm:1.0",
    *,
    model: keras.Model | None = None,
    on_nonfinite: str | None = None,
    run: str | os.PathLike[str] | RunWriter | None = None,
    recover: str | Ladder | None = None,
) -> Steady:
    """Clip and watch gradients inside a Keras optimizer, on any backend.

    The optimizer is changed in place, and is saved and loaded with its policy. A step with
    NaN or inf is dropped whole: weights, slots and the iteration counter stay bit-identical
    (a BatchNormalization's moving statistics are the forward pass's, and do not).

    Args:
        optimizer: any Keras optimizer; inside a `LossScaleOptimizer` the inner one is meant. Where
            one is put around it later, as compiling under ``mixed_float16`` does, `GradientMonitor`
            finds it; for a loop of your own attach to it.
        clip: a spec such as ``"norm:1.0"``, a policy, or ``{name pattern: spec}``.
        model: the compiled model, needed where it has trained already: its compiled
            step is then made again.
        on_nonfinite: ``"skip"`` (the default, save for ``clip="none"``), ``"zero"``,
            ``"propagate"`` or ``"raise"``: the step is dropped, and what next comes to the host
            raises `NonFiniteError`: `apply` itself where nothing is compiled, else
            `GradientMonitor` after the batch, `Steady.record`, `Steady.check`.
        run: a path for a new run file or an open `RunWriter`; `GradientMonitor` fills it in
            `fit`, `Steady.record` in a loop of your own.
        recover: what to do when a training is struck: ``"auto"``, ``"palm"``, rungs such as
            ``"skip:2+rollback:4"``, or a `steadygrad.recovery.Ladder`; None for nothing. It acts
            where steps are recorded, through `GradientMonitor` or `Steady.record`, with or without
            a run file, and needs ``model``.

    Returns:
        A handle.

    Raises:
        AttachError: no Keras optimizer, attached already, it clips by itself, or it has
            trained and no ``model`` is given.
        UsageError: an option that does not exist, or that does not go with another.

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
    if model is not None and not isinstance(model, keras.Model):
        raise UsageError(
            f"model= must be the Keras model that is compiled, got {type(model).__name__}; type "
            "attach(model.optimizer, ..., model=model)"
        )
    ladder = None if recover is None else _ladder(recover, model, on_nonfinite)
    _refuse_conflicts(inner)
    if classes.hook_of(inner) is not None and is_interactive():
        classes.remove(inner)  # a cell was run again
        if outer is not None:
            classes.stop_telling(outer)
        say_detached(type(inner).__name__)
    elif classes.hook_of(inner) is not None:
        raise AttachError("this optimizer is attached already; detach its first handle, or keep it")
    choice = resolve(clip, on_nonfinite if ladder is None else "skip", type(inner).__name__)
    _refuse_traced(inner, model)
    policy = choice.policy if ladder is None else Gated(choice.policy)
    hook = Hook(policy, choice.on_nonfinite)
    hook.built = _idle_groups_of(clip, choice.policy, type(inner).__name__)
    name = type(inner).__name__
    classes.install(inner, hook)
    weakref.finalize(inner, hook.use.ends, name)
    if model is not None and getattr(model, "built", False) and not model.trainable_variables:
        hook.use.tell_of_no_variables(name)
    if outer is not None:
        classes.tell(outer)
    _retrace(model)
    steady = Steady(inner, outer, model, run)
    if ladder is not None:
        steady.recover(ladder, model)
    return steady


def _idle_groups_of(
    clip: Clip, policy: Policy, class_name: str
) -> Callable[[tuple[str, ...]], None]:
    """Warn of groups for another optimizer now, and of those for no name once names are known.

    Raises:
        SpecError: a group of parameters is named, and Keras' optimizers have none.
    """
    asked = policy_of(clip)
    patterns = [pattern for pattern, _ in asked.members] if isinstance(asked, Groups) else []
    by_group = next((pattern for pattern in patterns if pattern.startswith(BY_GROUP)), None)
    if by_group is not None:
        raise SpecError(
            f"clip group {by_group!r} names a parameter group, and Keras' optimizers have none; "
            "group by variable path, such as '*/kernel'"
        )
    for sentence in idle_classes(asked, policy, class_name):
        warn(sentence, NoGradientsWarning)

    def built(names: tuple[str, ...]) -> None:
        for sentence in idle_patterns(policy, names):
            warn(sentence, NoGradientsWarning)

    return built


def _ladder(recover: str | Ladder, model: keras.Model | None, on_nonfinite: str | None) -> Ladder:
    if model is None:
        raise UsageError("recover= puts the model's variables back: type attach(..., model=model)")
    if on_nonfinite not in (None, "skip"):
        raise UsageError(
            f"recover= does not go with on_nonfinite={on_nonfinite!r}: it decides itself what is "
            "done with NaN and inf"
        )
    ladder = parse_ladder(recover)
    if ladder.folder:
        raise UsageError(NO_FOLDER.format(ladder.folder))
    return ladder


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
        self._sampler: VariableSampler | None = None
        self._start: dict[int, NDArray[np.generic]] = {}
        self._recorded = 0
        self._said_no_file = False
        self._recovery: KerasRecovery | None = None
        if run is not None:
            self.write_to(run)

    @internal
    def write_to(self, run: str | os.PathLike[str] | RunWriter) -> None:
        """Have `record` write into a run file.

        Args:
            run: a path for a new file, which the first of several processes writes for all, or an
                open `RunWriter`.

        Raises:
            RunFileError: a file stands at the path.
        """
        if not writes_for_all(run):
            return
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
        return self.seen_last if self.has_stepped else None

    @property
    @internal
    def has_stepped(self) -> bool:
        """Whether a step was seen."""
        hook = classes.hook_of(self.optimizer)
        return hook is not None and bool(hook.state.all) and hook.state.seen()["step"] > 0

    @internal
    def meet(self, model: keras.Model) -> None:
        """Find the `LossScaleOptimizer` that compiling has put around the optimizer since.

        Args:
            model: the one that is about to train.
        """
        outer = model.optimizer
        if self._outer is None and getattr(outer, "inner_optimizer", None) is self.optimizer:
            self._outer = outer
            classes.tell(outer)
            _retrace(model)

    @internal
    def look_at(self, model: keras.Model) -> None:
        """Learn which layers own the weights; `GradientMonitor` calls it in `fit`.

        Where nothing has trained yet, the weights that training starts from are kept until
        the first step is recorded: TensorFlow builds the optimizer no earlier.

        Args:
            model: the one that trains.
        """
        self._seen = model
        criterion = criterion_of(model)
        if self.writer is not None and criterion:
            self.writer.update_info(loop=criterion)
        if self.writer is not None and self.hook.state.seen()["step"] == 0:
            self._start = {id(v): to_numpy(v) for v in model.trainable_variables}

    @property
    @internal
    def hook(self) -> Hook:
        """What stands inside the optimizer.

        Raises:
            AttachError: it has been detached.
        """
        installed = classes.hook_of(self.optimizer)
        if installed is None:
            raise AttachError("this handle has been detached; attach the optimizer again")
        return installed

    @property
    def last(self) -> StepRecord:
        """The last step; reads the device. After `fit` on JAX, or inside a callback after
        ``model.jax_state_sync()``.

        Raises:
            UsageError: there was no step yet.
        """
        if not self.hook.state.seen()["step"]:
            raise UsageError(
                "no step yet: .last is there once the attached optimizer has stepped (on JAX, call "
                "model.jax_state_sync() before it inside of a callback)"
            )
        return self.seen_last

    @property
    @internal
    def seen_last(self) -> StepRecord:
        """The figures of the last step; those that it begins with before the first."""
        seen = self.hook.state.seen()
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
            loss_scale=seen["scale"] * float(self.optimizer.loss_scale_factor or 1.0),
        )

    @property
    def stats(self) -> GradientStats | None:
        """Per-tensor figures of the last step; None before the first."""
        return self.hook.state.stats()

    @property
    def clip_rate(self) -> float:
        """Share of the steps so far that were clipped; 0 before the first."""
        seen = self.hook.state.seen()
        return seen["clipped"] / seen["step"] if seen["step"] else 0.0

    def check(self) -> None:
        """Raise if ``on_nonfinite="raise"`` and a step was dropped since the last call.

        Raises:
            NonFiniteError: one was; names the tensors.
        """
        self.hook.check()

    def record(self, loss: float | None = None, again: Again | None = None) -> bool:
        """Write the last step into the run file; a step that is written already is left out.

        With ``recover=`` it is judged as well, with or without a run file.

        Args:
            loss: this step's; None where it is not known.
            again: with ``recover=``: computes loss and gradients of this step's batch once more
                and says whether all of them are finite; called where the step was dropped for a
                NaN or inf, and the act's `nature` says what came of it.

        Returns:
            Whether there was a step to write or to judge.

        Raises:
            NonFiniteError: ``on_nonfinite="raise"``, and a step was dropped.
            TrainingStopped: an alert asked for it.
            RecoveryError: recovery has nothing left to do; weights are those of the last good step.
        """
        if self.writer is None and self._recovery is None and not self.hook.raises:
            self._warn_of_no_file()
        elif not self.hook.use.came:
            self.hook.use.tell_of_no_step(type(self.optimizer).plain.__name__)
        return self.step_is_over(loss, again)

    def _warn_of_no_file(self) -> None:
        if not self._said_no_file:
            self._said_no_file = True
            warn(
                "record has nowhere to write to: type steadygrad.keras.attach(optimizer, ..., "
                "run='run.db')",
                SteadyGradWarning,
            )

    @internal
    def step_is_over(self, loss: float | None = None, again: Again | None = None) -> bool:
        """What `record` does; `GradientMonitor` calls it, with or without a run file.

        Args:
            loss: as `record` has it.
            again: as `record` has it.

        Returns:
            As `record` has it.
        """
        idle = self.writer is None and self._recovery is None
        if idle or not self.hook.state.all:
            self.check()
            return False
        last = self.seen_last
        if last.step < self._recorded:
            return False
        self._recorded = last.step + 1
        if self.writer is not None:
            self._write(self.writer, last, float("nan") if loss is None else float(loss))
        if self._recovery is not None:
            value, has_loss = math.nan if loss is None else float(loss), loss is not None
            dropped, scaled = last.action == ACTIONS[SKIP], self._outer is not None
            figures = FinishedStep(last.step, value, last.norm, dropped, scaled, has_loss)
            self._recovery.after_step(figures, again)
        self.check()
        if self.writer is not None:
            self.writer.stop_if_asked()
        return True

    def _write(self, run: RunWriter, last: StepRecord, loss: float) -> None:
        began = time.perf_counter()
        rows = to_numpy(self.hook.state.tensors).astype(np.float64)
        run.write_step(StepRecord(**{**vars(last), "loss": loss}), self._tensor_ids(run), *rows)
        self._sample(run, self._recorded)
        run.overhead_seconds += time.perf_counter() - began

    # -- recovery ----------------------------------------------------------------------------

    @internal
    def recover(self, ladder: Ladder, model: keras.Model) -> None:
        """Judge every step from now on; what `attach` does for ``recover=``.

        Args:
            ladder: what may be done.
            model: the compiled model.
        """
        self._recovery = KerasRecovery(ladder, model, self.optimizer, self.hook, self._write_event)
        if self.writer is not None:
            self._recovery.record_in(self.writer.path)

    def _write_event(
        self, kind: str, data: Mapping[str, str | int | None], step: int | None
    ) -> None:
        if self.writer is not None:
            self.writer.write_event(kind, data, step)

    @property
    def recoveries(self) -> list[RecoveryEvent]:
        """What recovery did so far, in order; empty without ``recover=``."""
        return [] if self._recovery is None else list(self._recovery.acts)

    @internal
    def averaged_loss(self) -> float | None:
        """With ``recover=``: the loss since the last step, from Keras' own average in `fit`."""
        return None if self._recovery is None else self._recovery.training.loss()

    @internal
    def begin_epoch(self) -> None:
        """Keras begins its averages anew; `GradientMonitor` calls it."""
        if self._recovery is not None:
            self._recovery.training.begin_epoch()

    def state_dict(self) -> dict[str, NDArray[np.generic]]:
        """The policy's memory and the counters, as NumPy arrays; a saved model holds them too."""
        return {v.name: to_numpy(v) for v in self.hook.state.all}

    def load_state_dict(self, state: Mapping[str, NDArray[np.generic]]) -> None:
        """Take back what `state_dict` gave.

        Args:
            state: it.

        Raises:
            AttachError: the optimizer is not built, or was built for other tensors.
        """
        if not self.hook.state.all:
            raise AttachError(
                "build the optimizer first: optimizer.build(model.trainable_variables)"
            )
        for variable in self.hook.state.all:
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
            self._warn_of_idle_recovery()
            self.hook.use.ends(type(self.optimizer).plain.__name__)
            classes.remove(self.optimizer)
            if self._outer is not None:
                classes.stop_telling(self._outer)
            _retrace(self._model)
        if self._owned and self.writer is not None:
            self.writer.close()

    def _warn_of_idle_recovery(self) -> None:
        idle = self._recovery is not None and not self._recovery.judged
        if idle and self.hook.state.seen()["step"]:
            warn(
                "recover= judged no step, for none was recorded: type model.fit(..., callbacks="
                "[GradientMonitor(steady)]), or steady.record(loss) in a loop of your own",
                SteadyGradWarning,
            )

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
            variables, lengths = self._measured_variables(), recurrent_lengths(self._seen)
            lengths_of = [lengths.get(id(v), 0) for v in variables]
            self._sampler = VariableSampler(run, variables, self._tensor_ids(run), lengths_of)
            start = [self._start[id(v)] for v in variables if id(v) in self._start]
            self._start = {}
            if step == 1 and len(start) == len(variables):
                self._sampler.at_step(0, start)
        self._sampler.at_step(step)

    def _measured_variables(self) -> list[keras.Variable]:
        """The measured variables, in the order of the hook's names."""
        one = self.optimizer
        trainable = one._trainable_variables
        return [v for v in trainable if not one._overwrite_variable_with_gradient(v)]

    def _learning_rate(self) -> float:
        try:
            return float(keras.ops.convert_to_numpy(self.optimizer.learning_rate))
        except AttributeError:  # a MultiOptimizer has several
            return float("nan")

    def _infos(self) -> list[TensorInfo]:
        kinds = owners(self._seen)
        rows = zip(
            self.hook.state.names, self.hook.state.shapes, self._measured_variables(), strict=True
        )
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
            "on_nonfinite": "raise" if self.hook.raises else self.hook.choice.on_nonfinite,
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
