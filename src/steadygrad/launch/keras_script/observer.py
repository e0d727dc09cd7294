"""Observing a Keras script.

`BaseOptimizer.apply` is the one place that `fit` and loops of one's own pass. It is
traced there, so its figures are made part of the compiled step and leave it sideways
(`side.py`). Unlike `steadygrad.keras.attach` this puts nothing into the optimizer:
what the script saves stays as it was. Where gradients are accumulated, micro-batches
leave it too, without figures, and are joined to the step that they are part of.
"""

from __future__ import annotations

import contextlib
import functools
import math
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, cast

from steadygrad.keras.internals import index_of, iterations, members, trainable_variables
from steadygrad.launch.keras_script.own_clip import OwnClip, own_clip
from steadygrad.launch.keras_script.side import Side
from steadygrad.launch.track import HEAD_WIDTH, STEPS, WAITS, Track, Tracks, body_width
from steadygrad.policies.choice import Choice
from steadygrad.policies.stepping import StepGradients, Stepped, measure, step
from steadygrad.runlog.facts import versions_of
from steadygrad.runlog.records import TensorInfo
from steadygrad.stats import GradientStats
from steadygrad.vocabulary import FIGURES

if TYPE_CHECKING:
    from collections.abc import Iterable

    import keras
    import torch

    from steadygrad.keras.engines import Backend
    from steadygrad.launch.contracts import RunContext
    from steadygrad.launch.keras_script.weights import WeightWatch
    from steadygrad.launch.tensorflow_script.observer import TensorFlowObserver
    from steadygrad.launch.tensorflow_script.outcome import Clipped
    from steadygrad.typing import Array


@dataclass
class StepGiven:
    """What one call of `apply` was given.

    Attributes:
        optimizer: the Keras optimizer.
        variables: those with a gradient.
        places: theirs among the optimizer's.
        gradients: one for each, as given.
    """

    optimizer: keras.Optimizer
    variables: list[keras.Variable]
    places: list[int]
    gradients: list[Array]


class KerasObserver:
    """Follows every Keras optimizer of one process.

    Args:
        session: the run.
        module: Keras, imported.
        tensorflow: gives what follows TensorFlow, where Keras runs on it.

    Attributes:
        loss: what was last differentiated, on other backends than TensorFlow.
        model: the one that trains.
    """

    backwards = 0

    def __init__(
        self,
        session: RunContext,
        module: ModuleType,
        tensorflow: Callable[[], TensorFlowObserver] | None = None,
    ) -> None:
        self._session = session
        self._keras = module
        self._under = tensorflow
        self._of: weakref.WeakKeyDictionary[keras.Optimizer, Track] = weakref.WeakKeyDictionary()
        self._shares = False
        self._scalers: list[tuple[keras.Optimizer, Clipped | None]] = []
        self._watches: weakref.WeakKeyDictionary[keras.Model, WeightWatch] = (
            weakref.WeakKeyDictionary()
        )
        self.loss: object = None
        self.model: keras.Model | None = None
        self.clips: Callable[[keras.Optimizer], bool] = lambda optimizer: False

    @property
    def backend_name(self) -> str:
        """``tensorflow``, ``jax`` or ``torch``."""
        return str(self._keras.backend.backend())

    @functools.cached_property
    def tensorflow(self) -> TensorFlowObserver | None:
        """What follows TensorFlow, where Keras runs on it."""
        return None if self._under is None else self._under()

    @functools.cached_property
    def tracks(self) -> Tracks:
        """Every optimizer's steps."""
        return Tracks(self._session) if self.tensorflow is None else self.tensorflow.tracks

    @functools.cached_property
    def backend(self) -> Backend:
        """What Keras runs on: made at the first step, since a script configures its devices
        before anything uses them."""
        from steadygrad.keras import engines

        return engines.current()

    @functools.cached_property
    def side(self) -> Side[Array]:
        """How figures leave a step."""
        if self.tensorflow is not None:
            return self.tensorflow.side
        if self.backend_name == "torch":
            from steadygrad.launch.keras_script.torch_side import TorchSide

            return cast("Side[Array]", TorchSide(self._session))
        from steadygrad.launch.keras_script.jax_side import JaxSide

        return JaxSide()

    @property
    def steps(self) -> int:
        """Steps seen so far; those on TensorFlow are told by its own observer."""
        return self.tracks.steps if self._under is None else 0

    @property
    def on_jax(self) -> bool:
        """Whether training passes its state around."""
        return self.backend_name == "jax"

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

    # -- losses --------------------------------------------------------------------------------

    def scaled(self, scaled: Array, loss: Array) -> None:
        """A loss was multiplied by a loss scale."""
        self.guarded("a loss is not seen", self._note_scaled, scaled, loss)

    def _note_scaled(self, scaled: Array, loss: Array) -> None:
        if self.tensorflow is not None:
            self.tensorflow.scaled(scaled, loss)
        elif self.backend_name == "torch":
            self.loss = cast("torch.Tensor", loss).detach()

    @contextlib.contextmanager
    def sharing(self) -> Iterator[None]:
        """Several optimizers step on one loss."""
        self._shares = True
        try:
            yield
        finally:
            self._shares = False
            if self._session.plan.clip is None:
                self._take_loss()  # else the hook of them all tells it yet

    def _take_loss(self) -> object:
        heard: TensorFlowObserver | KerasObserver = self.tensorflow or self
        loss, heard.loss = heard.loss, heard.loss if self._shares else None
        return loss

    # -- steps ---------------------------------------------------------------------------------

    @contextlib.contextmanager
    def scaling(self, scaler: keras.Optimizer, gradients: Sequence[Array | None]) -> Iterator[None]:
        """A `LossScaleOptimizer` divides gradients, and hands them to the one inside of it."""
        self._scalers.append((scaler, None))
        self.guarded("a clip call is not seen", self._follow_scaled, scaler, gradients)
        try:
            yield
        finally:
            self._scalers.pop()

    @contextlib.contextmanager
    def at_work(self) -> Iterator[None]:
        """An optimizer takes its step: what it clips now is not the script's."""
        log = None if self._under is None or self.tensorflow is None else self.tensorflow.log
        with nullcontext() if log is None else log.muted():
            yield

    def _follow_scaled(self, scaler: keras.Optimizer, gradients: Sequence[Array | None]) -> None:
        """Note which clip calls scaled gradients have passed: those inside are other tensors."""
        if self.tensorflow is not None:
            there = [gradient for gradient in gradients if gradient is not None]
            self._scalers[-1] = (scaler, self.tensorflow.clipped(there))

    def before_apply(
        self,
        optimizer: keras.Optimizer,
        gradients: Sequence[Array | None],
        variables: Iterable[keras.Variable] | None,
    ) -> None:
        """An optimizer's `apply` is called, or traced, with these gradients."""
        try:
            if self.tensorflow is not None:
                self.tensorflow.by_hand.forget()
            if self.clips(optimizer):
                return  # its hook tells
            variables = list(trainable_variables(optimizer) if variables is None else variables)
            pairs = zip(gradients, variables, strict=True)
            present = {i: g for i, (g, _) in enumerate(pairs) if g is not None}
            if present:
                self._observe(optimizer, variables, present)
        except Exception as error:
            if type(error).__name__ == "_RequestedStop":
                raise  # so tf.distribute ends the threads of replicas
            self._session.trouble("a Keras step is not observed", error)

    def track(self, optimizer: keras.Optimizer, variables: Sequence[keras.Variable]) -> Track:
        """The rows of an optimizer, made at its first step."""
        track = self._of.get(optimizer)
        if track is None or len(track.infos) < len(variables):
            from steadygrad.keras.criterion import criterion_of
            from steadygrad.keras.sampling import owners

            kinds, index = owners(self.model), self.tracks.next_index
            infos = [_described(v, index, kinds.get(id(v), "")) for v in variables]
            kind, backend = type(optimizer).__name__, self.backend_name
            versions = versions_of("keras", backend, "numpy")
            facts = {"framework": "keras", "backend": backend, "versions": versions}
            if self.model is not None and not index:
                facts["loop"] = criterion_of(self.model)
            track = self.tracks.add(kind, infos, variables, self.side.settle, facts)
            track.ring = self.side.ring(HEAD_WIDTH + body_width(len(infos)))
            self._of[optimizer] = track
        return track

    def _observe(
        self, optimizer: keras.Optimizer, variables: list[keras.Variable], present: dict[int, Array]
    ) -> None:
        track = self.track(optimizer, variables)
        inputs = StepGiven(
            optimizer, [variables[i] for i in present], list(present), list(present.values())
        )
        clipped, place = self._script_clips(track, inputs)
        by_torch = self._clips_by_torch(track, inputs)
        applied, kind = self._averaged(inputs, variables)
        if clipped is not None and kind is None:
            before = self._divided(clipped.before, clipped.scale)
        else:
            before = applied
        head = self._head(inputs, kind, applied[0], place, clipped)

        def body() -> Array:
            with self.backend.engine.scope():
                if by_torch is not None:
                    stats, outcome = by_torch
                    return self.body(track, stats, inputs.places, cast("list[Array]", outcome))
                return self._body_of(track, inputs, before, applied, clipped)

        width = body_width(len(track.infos))
        rest = body() if kind is None else self.side.when(kind, body, width)
        with self.backend.engine.scope():
            self.side.emit(track, self.side.joined(head, rest))

    def _divided(self, gradients: Sequence[Array], scale: Array | float | None) -> list[Array]:
        """Gradients for reading, without their loss scale; not by the optimizer's own operations,
        with which TensorFlow would merge ours."""
        gradients = [self.backend.unread(gradient) for gradient in gradients]
        if scale is None:
            return gradients
        return [self.backend.quotient(gradient, scale) for gradient in gradients]

    def _script_clips(self, track: Track, inputs: StepGiven) -> tuple[Clipped | None, int]:
        """The script's own clip calls on these gradients, where they can be followed."""
        own = own_clip(inputs.optimizer)
        if self.tensorflow is None:
            places = [] if own is None else [own.placement(len(inputs.places), 0)]
            return None, track.place(places)
        clipped = None
        if self._scalers:
            scaler, clipped = self._scalers[-1]
            if clipped is not None:
                clipped.scale = scaler.dynamic_scale.value
        if clipped is None:
            clipped = self.tensorflow.clipped(inputs.gradients, inputs.optimizer.loss_scale_factor)
        depth = 0 if clipped is None else 1 + max(group.depth for group in clipped.groups)
        places = [] if own is None else [own.placement(len(inputs.places), depth)]
        return clipped, self.tensorflow.placements(track, inputs.gradients, clipped, places)

    def _clips_by_torch(
        self, track: Track, inputs: StepGiven
    ) -> tuple[GradientStats, list[float]] | None:
        """What torch's own clip functions did to the gradients of a step, on torch."""
        optimizer = inputs.optimizer
        summed = optimizer.loss_scale_factor or optimizer.gradient_accumulation_steps
        if self.backend_name != "torch" or self._scalers or summed or own_clip(optimizer):
            return None
        names = tuple(track.infos[i].name for i in inputs.places)
        seen: tuple[GradientStats, list[float]] | None
        seen = self.side.clipped(track, inputs.variables, names)  # type: ignore[attr-defined]
        return seen

    def _body_of(
        self,
        track: Track,
        inputs: StepGiven,
        before: Sequence[Array],
        applied: Sequence[Array],
        clipped: Clipped | None,
    ) -> Array:
        """The figures of a step: before clipping, and what the script's and Keras' own left."""
        (before, summed), own = self.backend.reduced(before), own_clip(inputs.optimizer)
        names = tuple(track.infos[i].name for i in inputs.places)
        leaves = [self.backend.leaf(gradient) for gradient in before]
        if clipped is None and own is not None:
            choice, gradients = Choice(own.policy, "propagate"), StepGradients(leaves, names)
            done = step(self.backend.engine, choice, {}, gradients, full=True)
            stats = done.stats
            outcome = [done.threshold, done.coef, done.cosine, done.action]
        else:
            stats = measure(self.backend.engine, leaves, names, 2.0, full=True)
            outcome = self._left(stats, clipped, own)
        if summed and (clipped is not None or own is not None):
            outcome = self._unknown(outcome)
        return self.body(track, stats, inputs.places, outcome)

    def _left(
        self, stats: GradientStats, clipped: Clipped | None, own: OwnClip | None
    ) -> list[Array]:
        """What the script's clip calls left."""
        if clipped is None:
            one = self.backend.engine.xp.ones_like(stats.total_norm)
            return [one * math.inf, one, one, one * 0]
        from steadygrad.launch.tensorflow_script.observer import step_figures

        return list(step_figures(clipped, stats, own.policy if own is not None else None))

    def _unknown(self, outcome: Sequence[Array]) -> list[Array]:
        """Each replica clipped its own part, and what all of them left together is not computed."""
        self._session.mention(
            "each replica's gradients are clipped before they are summed: norms on record are of "
            "the sum before clipping, and coefficients are left out"
        )
        threshold, coef, cosine, action = outcome
        return [threshold, coef * math.nan, cosine * math.nan, action * 0]

    def _averaged(
        self, inputs: StepGiven, variables: list[keras.Variable]
    ) -> tuple[list[Array], Array | None]:
        """The gradients that the optimizer acts on, and what kind of micro-batch this is."""
        from steadygrad.keras.hook import accumulators, name_scope

        optimizer, gradients = inputs.optimizer, inputs.gradients
        scale, every = optimizer.loss_scale_factor, optimizer.gradient_accumulation_steps
        gradients = self._divided(gradients, scale)
        if not every:
            return gradients, None
        if not optimizer.built:  # as it would itself, a moment later
            with name_scope(optimizer):
                optimizer.build(variables)
        sums = [self.backend.value(one) for one in accumulators(optimizer, inputs.variables)]
        pairs = zip(gradients, sums, strict=True)
        closes = (self.backend.value(iterations(optimizer)) + 1) % every == 0
        kind = self.backend.engine.xp.where(closes, STEPS, WAITS)
        return [(self.backend.dense(g) + s) / every for g, s in pairs], kind

    def _head(
        self,
        inputs: StepGiven,
        kind: Array | None,
        beside: Array,
        place: int,
        clipped: Clipped | None,
    ) -> Array:
        numbers = self.batch(inputs.optimizer, inputs.variables, kind, beside, place)
        with self.backend.engine.scope():
            return self.side.head(numbers, [] if clipped is None else clipped.figures())

    def batch(
        self,
        optimizer: keras.Optimizer,
        variables: Sequence[keras.Variable],
        kind: Array | None,
        beside: Array,
        place: int = -1,
    ) -> list[Array]:
        """The numbers of `track.BATCH`.

        Args:
            optimizer: the one that steps.
            variables: those with a gradient.
            kind: what its micro-batch is; None without accumulation.
            beside: a tensor of the step.
            place: number of the clip calls' placements.

        Returns:
            One number each.
        """
        number = self.side.number
        return [
            self.side.loss(self._take_loss(), variables, beside),
            number(getattr(optimizer, "learning_rate", math.nan)),
            number(self._loss_scale(optimizer)),
            number(STEPS if kind is None else kind),
            number(place),
        ]

    def _loss_scale(self, optimizer: keras.Optimizer) -> Array | float:
        if self._scalers:
            scale: Array = self._scalers[-1][0].dynamic_scale
            return scale
        factor: float = optimizer.loss_scale_factor or 1.0
        return factor

    def body(
        self, track: Track, stats: GradientStats, places: Sequence[int], outcome: Sequence[Array]
    ) -> Array:
        """The figures of a step, in the order of `STEP` and `FIGURES`."""
        figures = [getattr(stats, name) for name in FIGURES]
        return self.side.body([stats.total_norm, *outcome], figures, places, len(track.infos))

    def tell(
        self,
        optimizer: keras.Optimizer,
        done: Stepped,
        variables: Sequence[keras.Variable],
        kind: Array | None,
    ) -> None:
        """A clipped optimizer's step is taken, or traced."""
        track = self.track(optimizer, trainable_variables(optimizer))
        batch = self.batch(optimizer, variables, kind, done.stats.total_norm)
        places = [index_of(optimizer, variable) for variable in variables]
        outcome = [done.threshold, done.coef, done.cosine, done.action]
        with self.backend.engine.scope():
            body = self.body(track, done.stats, places, outcome)
            self.side.emit(track, self.side.joined(self.side.head(batch, []), body))

    def finish(self) -> None:
        """Read what the device still holds."""
        if self._under is None and self.tracks.next_index:
            self.side.settle()
            self.tracks.finish()


def _described(variable: keras.Variable, optimizer: int, module: str) -> TensorInfo:
    return TensorInfo(
        name=str(getattr(variable, "path", variable.name)),
        shape=tuple(int(length) for length in variable.shape),
        dtype=str(getattr(variable.dtype, "name", variable.dtype)),
        module=module,
        optimizer=optimizer,
    )
