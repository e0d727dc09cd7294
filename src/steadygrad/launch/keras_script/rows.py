"""The row of figures that one step hands out, made where the step is traced."""

from __future__ import annotations

import contextlib
import functools
import math
import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, cast

from steadygrad.keras.internals import index_of, iterations, name_scope
from steadygrad.launch.keras_script.own_clip import OwnClip, by_hand, own_clip
from steadygrad.launch.keras_script.side import Side
from steadygrad.launch.track import DROPPED, STEPS, WAITS, Track, body_width
from steadygrad.policies.choice import Choice
from steadygrad.policies.stepping import SKIP, StepGradients, Stepped, measure, step
from steadygrad.stats import GradientStats
from steadygrad.vocabulary import FIGURES

if TYPE_CHECKING:
    import keras

    from steadygrad.keras.engines import Backend
    from steadygrad.launch.contracts import RunContext
    from steadygrad.launch.keras_script.ground import Ground
    from steadygrad.launch.keras_script.losses import HeardLoss
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


@dataclass(eq=False)
class ScaledStep:
    """What one call of a `LossScaleOptimizer` was given.

    Attributes:
        scaler: it.
        gradients: times the loss scale.
        variables: one for each; None for the optimizer's.
        scale: the loss scale; None where its variable has it.
        replica: the one that it was called on.
        clipped: the script's clip calls that the gradients have passed.
        loss: what was heard before.
    """

    scaler: keras.Optimizer
    gradients: list[Array | None]
    variables: list[keras.Variable] | None
    scale: Array | None = None
    replica: int = 0
    clipped: Clipped | None = None
    loss: object = None

    @property
    def factor(self) -> Array:
        """The loss scale that the gradients have."""
        return self.scaler.dynamic_scale if self.scale is None else self.scale


class ClipByHand(NamedTuple):
    """A clip by the script's own code: the gradients before it, and what it does."""

    before: Sequence[Array]
    clip: OwnClip


class StepRows:
    """Makes the rows of every optimizer's steps.

    Args:
        session: the run.
        ground: what Keras runs on.
        losses: the losses that were heard.
    """

    def __init__(self, session: RunContext, ground: Ground, losses: HeardLoss) -> None:
        self._session, self._ground, self._losses = session, ground, losses
        self._scaled: list[ScaledStep] = []

    @property
    def _backend(self) -> Backend:
        return self._ground.backend

    @property
    def _side(self) -> Side[Array]:
        return self._ground.side

    @property
    def scaled_step(self) -> ScaledStep | None:
        """What the `LossScaleOptimizer` at work was given on this replica; None outside of one."""
        here = self._ground.replica
        return next((step for step in reversed(self._scaled) if step.replica == here), None)

    @property
    def scaled_steps(self) -> list[ScaledStep]:
        """What the `LossScaleOptimizer` at work was given, on each replica that it works on."""
        latest = {step.replica: step for step in self._scaled}
        return [latest[replica] for replica in sorted(latest)]

    @contextlib.contextmanager
    def scaling(self, step: ScaledStep) -> Iterator[None]:
        """A `LossScaleOptimizer` divides gradients, and hands them to the one inside of it."""
        step.replica = self._ground.replica
        self._scaled.append(step)
        self._session.guarded("a clip call is not seen", self._follow_scaled, step)
        try:
            yield
        finally:
            self._scaled.remove(step)

    def _follow_scaled(self, step: ScaledStep) -> None:
        """Note the loss, and the clip calls passed: inside, gradients are other tensors."""
        step.loss = self._losses.peek(step.variables or [])
        if self._ground.tensorflow is not None:
            there = [gradient for gradient in step.gradients if gradient is not None]
            step.clipped = self._ground.tensorflow.clipped(there)

    def observe(self, track: Track, inputs: StepGiven, variables: list[keras.Variable]) -> None:
        """An optimizer is about to step, or its step is traced.

        Args:
            track: its rows.
            inputs: what it was given.
            variables: all of its own.
        """
        by_hand = self._clip_by_hand(inputs)
        clipped, place = self._script_clips(track, inputs, by_hand)
        by_torch = self._clips_by_torch(track, inputs)
        taped = self._before_arithmetic(track, inputs, clipped)
        applied, kind = self._averaged(inputs, variables)
        if clipped is not None and kind is None:
            before = self._divided(clipped.before, clipped.scale)
        elif by_hand is not None:
            before = self._divided(by_hand.before, None)
        else:
            before = applied
        head = self._head(inputs, kind, applied[0], place, clipped)

        def body() -> Array:
            with self._backend.engine.scope():
                if by_torch is not None:
                    stats, outcome = by_torch
                    return self._body(track, stats, inputs.places, cast("list[Array]", outcome))
                return self._body_of(track, inputs, before, applied, clipped, by_hand)

        width = body_width(len(track.infos))
        rest = body() if kind is None else self._side.when(kind, body, width)
        with self._backend.engine.scope():
            row = self._side.joined(head, rest)
            if self._ground.tensorflow is not None:
                row = self._ground.tensorflow.with_before(track, row, taped, inputs.places)
            self._side.emit(track, row)

    def tell(
        self,
        track: Track,
        optimizer: keras.Optimizer,
        done: Stepped,
        variables: Sequence[keras.Variable],
        kind: Array | None,
    ) -> None:
        """A clipped optimizer's step is taken, or traced."""
        batch = self._batch(optimizer, variables, kind, done.stats.total_norm)
        places = [index_of(optimizer, variable) for variable in variables]
        outcome = [done.threshold, done.coef, done.cosine, done.action]
        with self._backend.engine.scope():
            body = self._body(track, done.stats, places, outcome)
            self._side.emit(track, self._side.joined(self._side.head(batch, []), body))

    def drop(self, track: Track, inputs: StepGiven, scaled: Sequence[ScaledStep]) -> None:
        """A `LossScaleOptimizer` drops a step whose scaled gradients overflowed.

        Args:
            track: the rows of the optimizer inside.
            inputs: what the scaler was given on the first replica.
            scaled: the same, with the loss scale, on each replica.
        """
        leaves = self._before_scaling(inputs, scaled)
        names = tuple(track.infos[i].name for i in inputs.places)
        number, side = self._side.number, self._side
        self._losses.take(inputs.variables)
        losses = [side.loss(one.loss, inputs.variables, leaves[0]) for one in scaled]
        batch = [
            functools.reduce(operator.add, losses),  # each replica has its part of the loss
            number(getattr(inputs.optimizer, "learning_rate", math.nan)),
            number(scaled[0].factor),
            number(DROPPED),
            number(-1),
        ]
        with self._backend.engine.scope():
            stats = measure(self._backend.engine, leaves, names, 2.0, full=True)
            one = self._backend.engine.xp.ones_like(stats.total_norm)
            outcome = [one * math.inf, one, one, one * SKIP]
            body = self._body(track, stats, inputs.places, outcome)
            side.emit(track, side.joined(side.head(batch, []), body))

    def _before_scaling(self, inputs: StepGiven, scaled: Sequence[ScaledStep]) -> list[Array]:
        """Gradients before the script's clip calls, without loss scale, summed over replicas."""
        parts = []
        for one in scaled:
            applied = cast("list[Array]", [one.gradients[i] for i in inputs.places])
            before: Sequence[Array] = applied if one.clipped is None else one.clipped.before
            parts.append(self._divided(before, _value(one.factor)))
        if len(parts) == 1:
            return [self._backend.leaf(gradient) for gradient in parts[0]]
        dense = [[self._backend.dense(gradient) for gradient in part] for part in parts]
        return [functools.reduce(operator.add, same) for same in zip(*dense, strict=True)]

    def _divided(self, gradients: Sequence[Array], scale: Array | float | None) -> list[Array]:
        """Gradients for reading, without their loss scale; not by the optimizer's own operations,
        with which TensorFlow would merge ours."""
        gradients = [self._backend.unread(gradient) for gradient in gradients]
        if scale is None:
            return gradients
        return [self._backend.quotient(gradient, scale) for gradient in gradients]

    def _clip_by_hand(self, inputs: StepGiven) -> ClipByHand | None:
        """What the script's own code has clipped by in front of the optimizer, on JAX."""
        optimizer = inputs.optimizer
        summed = optimizer.loss_scale_factor or optimizer.gradient_accumulation_steps
        if self._ground.name != "jax" or self._scaled or summed or own_clip(optimizer):
            return None
        from steadygrad.launch.jax_script.by_hand import clipped_by_hand

        hand = clipped_by_hand(inputs.gradients)
        if hand is None or len(hand.clips) > 1 or not math.isfinite(hand.clips[0].limit):
            return None
        ((kind, places, limit, whole),) = hand.clips
        if len(places) < len(inputs.gradients) or (kind == "norm" and not whole):
            return None
        return ClipByHand(hand.before, by_hand(kind, limit))

    def _script_clips(
        self, track: Track, inputs: StepGiven, by_hand: ClipByHand | None
    ) -> tuple[Clipped | None, int]:
        """The script's own clip calls on these gradients, where they can be followed."""
        own = own_clip(inputs.optimizer)
        if self._ground.tensorflow is None:
            own = own if by_hand is None else by_hand.clip
            places = [] if own is None else [own.placement(len(inputs.places), 0)]
            return None, track.placements.enter(places)
        clipped = None
        scaled = self.scaled_step
        if scaled is not None:
            clipped = scaled.clipped
            if clipped is not None:
                clipped.scale = _value(scaled.factor)
        if clipped is None:
            clipped = self._ground.tensorflow.clipped(
                inputs.gradients, inputs.optimizer.loss_scale_factor
            )
        depth = 0 if clipped is None else 1 + max(group.depth for group in clipped.groups)
        places = [] if own is None else [own.placement(len(inputs.places), depth)]
        return clipped, self._ground.tensorflow.placements(track, inputs.gradients, clipped, places)

    def _before_arithmetic(
        self, track: Track, inputs: StepGiven, clipped: Clipped | None
    ) -> list[Array] | None:
        """On TensorFlow, what a step's gradients are made of by what is no clip call."""
        if self._ground.tensorflow is None:
            return None
        taped = self._ground.tensorflow.before_arithmetic(track, inputs.variables, inputs.gradients)
        optimizer = inputs.optimizer
        summed = optimizer.loss_scale_factor or optimizer.gradient_accumulation_steps
        hidden = clipped is not None or self._scaled or summed or own_clip(optimizer)
        return None if hidden else taped

    def _clips_by_torch(
        self, track: Track, inputs: StepGiven
    ) -> tuple[GradientStats, list[float]] | None:
        """What torch's own clip functions did to the gradients of a step, on torch."""
        optimizer = inputs.optimizer
        summed = optimizer.loss_scale_factor or optimizer.gradient_accumulation_steps
        if self._ground.name != "torch" or self._scaled or summed or own_clip(optimizer):
            return None
        names = tuple(track.infos[i].name for i in inputs.places)
        seen: tuple[GradientStats, list[float]] | None
        seen = self._side.clipped(track, inputs.variables, names)  # type: ignore[attr-defined]
        return seen

    def _body_of(
        self,
        track: Track,
        inputs: StepGiven,
        before: Sequence[Array],
        applied: Sequence[Array],
        clipped: Clipped | None,
        by_hand: ClipByHand | None,
    ) -> Array:
        """The figures of a step: before clipping, and what the script's and Keras' own left."""
        (before, summed), own = self._backend.reduced(before), own_clip(inputs.optimizer)
        own = own if by_hand is None else by_hand.clip
        names = tuple(track.infos[i].name for i in inputs.places)
        leaves = [self._backend.leaf(gradient) for gradient in before]
        if clipped is None and own is not None:
            choice, gradients = Choice(own.policy, "propagate"), StepGradients(leaves, names)
            done = step(self._backend.engine, choice, {}, gradients, full=True)
            stats = done.stats
            outcome = [done.threshold, done.coef, done.cosine, done.action]
        else:
            stats = measure(self._backend.engine, leaves, names, 2.0, full=True)
            outcome = self._left(stats, clipped, own)
        if summed and (clipped is not None or own is not None):
            outcome = self._unknown(outcome)
        return self._body(track, stats, inputs.places, outcome)

    def _left(
        self, stats: GradientStats, clipped: Clipped | None, own: OwnClip | None
    ) -> list[Array]:
        """What the script's clip calls left."""
        if clipped is None:
            one = self._backend.engine.xp.ones_like(stats.total_norm)
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
        from steadygrad.keras.hook import accumulators

        optimizer, gradients = inputs.optimizer, inputs.gradients
        scale, every = optimizer.loss_scale_factor, optimizer.gradient_accumulation_steps
        gradients = self._divided(gradients, scale)
        if not every:
            return gradients, None
        if not optimizer.built:  # as it would itself, a moment later
            with name_scope(optimizer):
                optimizer.build(variables)
        sums = [self._backend.value(one) for one in accumulators(optimizer, inputs.variables)]
        pairs = zip(gradients, sums, strict=True)
        closes = (self._backend.value(iterations(optimizer)) + 1) % every == 0
        kind = self._backend.engine.xp.where(closes, STEPS, WAITS)
        return [(self._backend.dense(g) + s) / every for g, s in pairs], kind

    def _head(
        self,
        inputs: StepGiven,
        kind: Array | None,
        beside: Array,
        place: int,
        clipped: Clipped | None,
    ) -> Array:
        numbers = self._batch(inputs.optimizer, inputs.variables, kind, beside, place)
        with self._backend.engine.scope():
            return self._side.head(numbers, [] if clipped is None else clipped.figures())

    def _batch(
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
        number, scaled = self._side.number, self.scaled_step
        loss = self._losses.take(variables)
        loss = loss if scaled is None or scaled.loss is None else scaled.loss
        return [
            self._side.loss(loss, variables, beside),
            number(getattr(optimizer, "learning_rate", math.nan)),
            number(self._loss_scale(optimizer)),
            number(STEPS if kind is None else kind),
            number(place),
        ]

    def _loss_scale(self, optimizer: keras.Optimizer) -> Array | float:
        scaled = self.scaled_step
        if scaled is not None:
            return scaled.factor
        factor: float = optimizer.loss_scale_factor or 1.0
        return factor

    def _body(
        self, track: Track, stats: GradientStats, places: Sequence[int], outcome: Sequence[Array]
    ) -> Array:
        """The figures of a step, in the order of `STEP` and `FIGURES`."""
        figures = [getattr(stats, name) for name in FIGURES]
        return self._side.body([stats.total_norm, *outcome], figures, places, len(track.infos))


def _value(scale: Array) -> Array:
    """A variable's value; what is an array already, as it is."""
    value: Array = getattr(scale, "value", scale)
    return value
