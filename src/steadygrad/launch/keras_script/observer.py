"""Observing a Keras script.

`BaseOptimizer.apply` is the one place that `fit` and loops of one's own pass. It is
traced there, so its figures are made part of the compiled step and leave it sideways
(`side.py`). Unlike `steadygrad.keras.attach` this puts nothing into the optimizer:
what the script saves stays as it was. Where gradients are accumulated, micro-batches
leave it too, without figures, and are joined to the step that they are part of.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from types import ModuleType
from typing import TYPE_CHECKING

from steadygrad.keras.internals import members, trainable_variables
from steadygrad.launch.keras_script.ground import Ground
from steadygrad.launch.keras_script.losses import HeardLoss
from steadygrad.launch.keras_script.rows import StepGiven, StepRows
from steadygrad.launch.track import HEAD_WIDTH, Track, Tracks, body_width
from steadygrad.policies.stepping import Stepped
from steadygrad.runlog.facts import versions_of
from steadygrad.runlog.records import TensorInfo

if TYPE_CHECKING:
    from collections.abc import Iterable

    import keras

    from steadygrad.keras.hook import Hook
    from steadygrad.launch.contracts import RunContext
    from steadygrad.launch.keras_script.weights import WeightWatch
    from steadygrad.launch.tensorflow_script.observer import TensorFlowObserver
    from steadygrad.typing import Array


class KerasObserver:
    """Follows every Keras optimizer of one process.

    Args:
        session: the run.
        module: Keras, imported.
        tensorflow: gives what follows TensorFlow, where Keras runs on it.

    Attributes:
        ground: what Keras runs on.
        losses: what was last differentiated.
        rows: makes the figures of each step.
        model: the one that trains.
        clips: whether an optimizer's steps are clipped, and told, by a hook of ours.
    """

    backwards = 0

    def __init__(
        self,
        session: RunContext,
        module: ModuleType,
        tensorflow: Callable[[], TensorFlowObserver] | None = None,
    ) -> None:
        self._session = session
        self.ground = Ground(session, module, tensorflow)
        self.losses = HeardLoss(session, self.ground)
        self.rows = StepRows(session, self.ground, self.losses)
        self._of: weakref.WeakKeyDictionary[keras.Optimizer, Track] = weakref.WeakKeyDictionary()
        self._watches: weakref.WeakKeyDictionary[keras.Model, WeightWatch] = (
            weakref.WeakKeyDictionary()
        )
        self.model: keras.Model | None = None
        self.clips: Callable[[keras.Optimizer], bool] = lambda optimizer: False
        self._attached: weakref.WeakSet[keras.Optimizer] = weakref.WeakSet()
        self._hooks: weakref.WeakSet[Hook] = weakref.WeakSet()

    @functools.cached_property
    def tracks(self) -> Tracks:
        """Every optimizer's steps."""
        tensorflow = self.ground.tensorflow
        return Tracks(self._session) if tensorflow is None else tensorflow.tracks

    @property
    def steps(self) -> int:
        """Steps seen so far; those on TensorFlow are told by its own observer."""
        return 0 if self.ground.is_tensorflow else self.tracks.steps

    def guarded(self, what: str, act: Callable[..., object], *arguments: object) -> None:
        """Call ``act``; what it raises is a trouble of ours, not the script's."""
        self._session.guarded(what, act, *arguments)

    def tracks_of(self, optimizer: keras.Optimizer) -> list[Track]:
        """What is known of an optimizer's steps, or its members'."""
        inner = getattr(optimizer, "inner_optimizer", optimizer)
        family = [inner, *members(inner)]
        return [self._of[one] for one in family if one in self._of]

    def watch_weights(self, model: keras.Model) -> None:
        """A model has made its training function: sample its weights around that."""
        from steadygrad.launch.keras_script.weights import WeightWatch

        if model.built and not model.trainable_variables:
            self._session.mention(
                f"{model.name} has no trainable weights, and Keras takes no step then: set "
                "layer.trainable = True for some of its layers, and compile it again"
            )
        watch = self._watches.get(model)
        if watch is None:
            watch = self._watches[model] = WeightWatch(self, model)
        model.train_function = watch.around(model.train_function)

    @property
    def is_asked_to_stop(self) -> bool:
        """Whether an alert asked for the training's end."""
        if self._session.plan.stop_on is None:
            return False
        writer = self._session.writer()
        return writer is not None and bool(writer.stop_reason)

    def is_compiled_without_us(self, model: keras.Model) -> bool:
        """Whether a model of an earlier cell may have a training step that tells nothing."""
        return bool(self._session.plan.cell) and model not in self._watches

    def release(self) -> None:
        """Have the models that trained make training steps without us."""
        for model in list(self._watches):
            model.train_function = None
        for hook in self._hooks:
            hook.watcher = None

    def hear(self, optimizer: keras.Optimizer, hook: Hook) -> None:
        """Have an optimizer that the script attaches tell of its steps, with norms before it clips.

        Args:
            optimizer: the attached one.
            hook: what stands inside of it.
        """
        if hook.watcher is None and not hook.only_observes:
            hook.watcher = functools.partial(
                self.guarded, "an attached Keras step is not recorded", self.tell, optimizer
            )
            self._hooks.add(hook)
            for one in (optimizer, *members(optimizer)):
                self._attached.add(one)

    # -- steps ---------------------------------------------------------------------------------

    def at_work(
        self, optimizer: keras.Optimizer, gradients: Sequence[Array | None]
    ) -> AbstractContextManager[None]:
        """An optimizer takes its step: what it clips now is no call before that."""
        tensorflow = self.ground.tensorflow
        return nullcontext() if tensorflow is None else tensorflow.at_work(optimizer, gradients)

    def before_apply(
        self,
        optimizer: keras.Optimizer,
        gradients: Sequence[Array | None],
        variables: Iterable[keras.Variable] | None,
    ) -> None:
        """An optimizer's `apply` is called, or traced, with these gradients."""
        try:
            if self.ground.tensorflow is not None:
                self.ground.tensorflow.by_hand.forget()
            if optimizer in self._attached or self.clips(optimizer):
                return  # its hook tells
            variables = list(trainable_variables(optimizer) if variables is None else variables)
            if len(gradients) != len(variables):
                return  # which Keras refuses in a moment
            pairs = zip(gradients, variables, strict=True)
            present = {i: g for i, (g, _) in enumerate(pairs) if g is not None}
            if present:
                there = [variables[i] for i in present]
                inputs = StepGiven(optimizer, there, list(present), list(present.values()))
                self.rows.observe(self.track(optimizer, variables), inputs, variables)
        except Exception as error:
            if type(error).__name__ == "_RequestedStop":
                raise  # so tf.distribute ends the threads of replicas
            self._session.trouble("a Keras step is not observed", error)

    def dropped(self) -> None:
        """The `LossScaleOptimizer` at work drops its step, or that branch is traced."""
        self.guarded("a dropped Keras step is not recorded", self._tell_dropped)

    def _tell_dropped(self) -> None:
        steps = self.rows.scaled_steps
        if not steps:
            return
        if self.ground.replicas > 1 and self.ground.replica >= 0:
            self._session.mention(
                "steps that a LossScaleOptimizer drops are not recorded under this strategy of "
                "tf.distribute, whose replicas decide each for itself"
            )
            return
        step = steps[0]
        optimizer = step.scaler.inner_optimizer
        variables = list(step.variables or trainable_variables(optimizer))
        pairs = zip(step.gradients, variables, strict=True)
        present = {i: g for i, (g, _) in enumerate(pairs) if g is not None}
        if present and not members(optimizer):
            there = [variables[i] for i in present]
            inputs = StepGiven(optimizer, there, list(present), list(present.values()))
            self.rows.drop(self.track(optimizer, variables), inputs, steps)

    def track(self, optimizer: keras.Optimizer, variables: Sequence[keras.Variable]) -> Track:
        """The rows of an optimizer, made at its first step."""
        track = self._of.get(optimizer)
        if track is None or len(track.infos) < len(variables):
            from steadygrad.keras.criterion import criterion_of
            from steadygrad.keras.sampling import owners

            kinds, index = owners(self.model), self.tracks.next_index
            infos = [_described(v, index, kinds.get(id(v), "")) for v in variables]
            kind = getattr(type(optimizer), "plain", type(optimizer)).__name__
            backend = self.ground.name
            versions = versions_of("keras", backend, "numpy")
            facts = {"framework": "keras", "backend": backend, "versions": versions}
            if self.model is not None and not index:
                facts["loop"] = criterion_of(self.model)
            track = self.tracks.add(kind, infos, variables, self.ground.side.settle, facts, Track)
            if self.ground.tensorflow is not None:
                self.ground.tensorflow.moved_by(track, variables)
            track.ring = self.ground.side.ring(HEAD_WIDTH + body_width(len(infos)))
            self._of[optimizer] = track
        return track

    def tell(
        self,
        optimizer: keras.Optimizer,
        done: Stepped,
        variables: Sequence[keras.Variable],
        kind: Array | None,
    ) -> None:
        """A clipped optimizer's step is taken, or traced."""
        track = self.track(optimizer, trainable_variables(optimizer))
        self.rows.tell(track, optimizer, done, variables, kind)

    def finish(self) -> None:
        """Read what the device still holds."""
        if not self.ground.is_tensorflow and self.tracks.begun:
            self.ground.side.settle()
            self.tracks.finish()


def _described(variable: keras.Variable, optimizer: int, module: str) -> TensorInfo:
    return TensorInfo(
        name=str(getattr(variable, "path", variable.name)),
        shape=tuple(int(length) for length in variable.shape),
        dtype=str(getattr(variable.dtype, "name", variable.dtype)),
        module=module,
        optimizer=optimizer,
    )
