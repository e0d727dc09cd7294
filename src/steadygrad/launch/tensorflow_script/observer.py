"""What is made of a TensorFlow script's backward passes, clip calls and steps.

Steps of Keras 3 are told by its own observer (`keras_script`), which asks here for the loss and
for clip calls. The optimizers of `tf.compat.v1` and of tf_keras are followed here.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, cast

import tensorflow as tf

from steadygrad.launch.keras_script.own_clip import OwnClip, own_clip
from steadygrad.launch.placements import Placement
from steadygrad.launch.tensorflow_script.apply_call import ApplyCall, inner_of
from steadygrad.launch.tensorflow_script.by_hand import (
    AskedGradients,
    UpdatesByHand,
    Variable,
    VariablesByHand,
    raw_variable,
    variables_in,
)
from steadygrad.launch.tensorflow_script.clips import (
    AppliedGradients,
    TensorFlowClipCall,
    TensorFlowClipLog,
)
from steadygrad.launch.tensorflow_script.differentiated import DifferentiatedLosses
from steadygrad.launch.tensorflow_script.outcome import Clipped, values
from steadygrad.launch.tensorflow_script.side import TensorFlowSide, reached
from steadygrad.launch.tensorflow_script.takeover import ReplacedCall, TensorFlowTakeover
from steadygrad.launch.tensorflow_script.taped import TapedGradients
from steadygrad.launch.track import (
    BEFORE,
    HEAD_WIDTH,
    STEPS,
    TentativeTrack,
    Track,
    Tracks,
    body_width,
)
from steadygrad.policies import Policy
from steadygrad.policies.choice import Choice
from steadygrad.policies.stepping import CLIP, NONE, SKIP, StepGradients, measure, step
from steadygrad.runlog.facts import versions_of
from steadygrad.runlog.records import TensorInfo
from steadygrad.stats import GradientStats
from steadygrad.tensorflow.engine import Gradient, TensorFlowEngine, merged
from steadygrad.tensorflow.rounding import narrow, widen
from steadygrad.tensorflow.shadow import unread
from steadygrad.vocabulary import FIGURES

if TYPE_CHECKING:
    from steadygrad.launch.contracts import RunContext


class TensorFlowObserver:
    """Follows one process.

    Args:
        session: the run.

    Attributes:
        log: the script's clip calls.
        by_hand: gradients that wait to be applied, by an optimizer or by the loop itself.
        tracks: every optimizer's steps, Keras' among them.
        losses: what was differentiated.
        backwards: backward passes seen, those of one trace counted once.
    """

    def __init__(self, session: RunContext) -> None:
        self._session = session
        self.log = TensorFlowClipLog()
        self.by_hand = UpdatesByHand()
        self.tracks = Tracks(session)
        self.side = TensorFlowSide()
        self.losses = DifferentiatedLosses()
        self._taped = TapedGradients()
        self.backwards = 0
        self._unscaled: tuple[list[tuple[Gradient, Gradient]], tf.Tensor | None] = ([], None)
        self._own: weakref.WeakKeyDictionary[object, Track] = weakref.WeakKeyDictionary()
        self._loops: dict[tuple[int, ...], VariablesByHand] = {}
        self._of_optimizers: list[tuple[set[int], Track]] = []
        self._unseen: set[tuple[str, frozenset[int]]] = set()
        self._engine = TensorFlowEngine()
        self._takeover: TensorFlowTakeover | None = None
        if session.plan.clip is not None:
            self._takeover = TensorFlowTakeover(session, session.plan.clip)

    @property
    def steps(self) -> int:
        """Steps seen so far."""
        return self.tracks.steps

    @property
    def replicas(self) -> int:
        """How many replicas of a model train together here."""
        return int(tf.distribute.get_strategy().num_replicas_in_sync)

    @property
    def replica(self) -> int:
        """Which of them runs, or is traced, now; -1 for all of them together."""
        if self.replicas == 1:
            return 0
        context = tf.distribute.get_replica_context()
        if context is None:
            return -1
        number = tf.get_static_value(context.replica_id_in_sync_group)
        return 0 if number is None else int(number)  # on TPUs one trace serves all

    # -- backward ------------------------------------------------------------------------------

    def heard(self, loss: object) -> None:
        """Gradients of this were asked for."""
        self.backwards += 1
        self.log.listens = True
        self.losses.heard(loss)

    def differentiated(self, sources: object, gradients: object) -> None:
        """A tape has returned these gradients of what was heard."""
        self.losses.heard_for(variables_in(sources))
        self.by_hand.differentiated(sources, gradients)
        self.returned(sources, gradients)

    def returned(self, sources: object, gradients: object) -> None:
        """These gradients of these variables were computed."""
        if self._takeover is None and self.replicas == 1:
            self._taped.differentiated(sources, gradients)

    def unscaled(
        self, scaled: Sequence[object], unscaled: Sequence[object], scale: tf.Tensor
    ) -> None:
        """Gradients were divided by a loss scale, maybe after a clip call."""
        pairs = zip(
            cast("Sequence[Gradient]", scaled), cast("Sequence[Gradient]", unscaled), strict=True
        )
        self._unscaled = [(was, now) for was, now in pairs if now is not None], scale

    def _as_scaled(
        self, gradients: list[Gradient]
    ) -> tuple[list[Gradient], tf.Tensor | None, Clipped | None]:
        """The gradients of a step, what divides them, and their clip calls.

        They come as they were before the script divided them by a loss scale, where it has clipped
        them before that alone.
        """
        (pairs, scale), self._unscaled = self._unscaled, ([], None)
        clipped = self.clipped(gradients)
        scaled = {id(now): was for was, now in pairs}
        if clipped is None and all(id(gradient) in scaled for gradient in gradients):
            before = [scaled[id(gradient)] for gradient in gradients]
            clipped = self.clipped(before, scale)
            if clipped is not None:
                return before, scale, clipped
        return gradients, None, clipped

    # -- clip calls ----------------------------------------------------------------------------

    def clip_call(self, call: TensorFlowClipCall, returned: Sequence[Gradient | None]) -> None:
        """The script has called a clip function."""
        pairs = zip(call.tensors, returned, strict=True)
        there = [(b, a) for b, a in pairs if b is not None and a is not None]
        call.tensors = [before for before, _ in there]
        self.log.note(call, call.tensors, [after for _, after in there])
        if not self.log.deaf:
            self.by_hand.clipped(call.tensors, [after for _, after in there])

    def at_work(
        self, optimizer: object, gradients: Sequence[Gradient | None]
    ) -> AbstractContextManager[None]:
        """While an optimizer works: what it clips now is no call before its step.

        Args:
            optimizer: any, of Keras 3 too.
            gradients: what it was given.
        """
        kind = getattr(type(optimizer), "plain", type(optimizer)).__name__
        own = own_clip(inner_of(optimizer)) is not None

        def tell(function: str) -> None:
            if not own and self._session.plan.clip is not None:
                self._session.mention(
                    f"the script's {kind} still clips inside its own step, by tf.{function}, "
                    "behind --clip: take that out of its update_step to clip by --clip alone"
                )
            elif not own:
                self._session.mention(
                    f"the script's {kind} clips inside its own step, by tf.{function}: norms on "
                    "record are those before it, and what it leaves is not on record"
                )

        return self.log.at_work(gradients, tell)

    def clipped(
        self, gradients: Sequence[Gradient], divided_by: float | tf.Tensor | None = None
    ) -> Clipped | None:
        """What clip calls the gradients of a step have passed; None where none."""
        chains = [self.log.chain(gradient) for gradient in gradients]
        return Clipped(chains, gradients, divided_by) if any(chains) else None

    def without_clips(self, gradients: Sequence[Gradient | None]) -> list[Gradient | None]:
        """Gradients as they were before the script clipped them; told in the last words."""
        chains = [[] if g is None else self.log.chain(g) for g in gradients]
        for function in sorted({link.call.function for chain in chains for link in chain}):
            self._session.mention(f"tf.{function} was replaced by --clip")
        pairs = zip(chains, gradients, strict=True)
        return [chain[0].before if chain else gradient for chain, gradient in pairs]

    def placements(
        self,
        track: Track,
        gradients: Sequence[Gradient],
        clipped: Clipped | None,
        own: Sequence[Placement] = (),
    ) -> int:
        """The number of the places at which the clip calls of a step stand.

        Args:
            track: the optimizer's.
            gradients: what the step was given.
            clipped: as `clipped` returned it.
            own: what the optimizer clips by itself.

        Returns:
            As `Track.place` has it.
        """
        traced = not tf.executing_eagerly()
        places: list[Placement] = [] if clipped is None else clipped.placements()
        places += self.log.discarded(gradients, len(gradients))
        places += own
        number = track.placements.enter(places, traced)
        refs = {id(gradient): weakref.ref(gradient) for gradient in gradients}

        def tell(placement: Placement) -> None:
            track.placements.add_late(number if traced else -1, placement)

        self.log.stepped(AppliedGradients(refs, tell))
        return number

    # -- clips by arithmetic -------------------------------------------------------------------

    def before_arithmetic(
        self, track: Track, variables: Sequence[object], gradients: Sequence[Gradient]
    ) -> list[Gradient] | None:
        """The gradients that a step's are made of by what is no clip call.

        Args:
            track: the optimizer's.
            variables: TensorFlow's or Keras', which have a gradient.
            gradients: what the step was given for them.

        Returns:
            One for each; None where there are none, or where they need not be looked at.
        """
        taken = self._taped.taken(variables, gradients)
        if taken is None or self.log.waits_for(taken):
            return None
        return None if tf.executing_eagerly() and track.arithmetic.rests else taken

    def with_before(
        self, track: Track, row: tf.Tensor, before: Sequence[Gradient] | None, places: Sequence[int]
    ) -> tf.Tensor:
        """A step's row behind that of the gradients which its own are made of.

        Args:
            track: the optimizer's.
            row: it.
            before: as `before_arithmetic` returned them.
            places: of their variables.

        Returns:
            Both behind each other; the row alone where there are no such gradients.
        """
        if before is None:
            return row
        names = tuple(track.infos[i].name for i in places)
        stats = measure(self._engine, self._leaves(before, None), names, 2.0, full=True)
        one, number = tf.ones_like(stats.total_norm), self.side.number
        batch = [number(figure) for figure in (math.nan, math.nan, 1.0, BEFORE, -1)]
        figures = [getattr(stats, name) for name in FIGURES]
        outcome = [stats.total_norm, one * math.inf, one, one, one * NONE]
        body = self.side.body(outcome, figures, places, len(track.infos))
        return tf.concat([self.side.joined(self.side.head(batch, []), body), row], 0)

    # -- optimizers that are not Keras 3's -----------------------------------------------------

    def step(self, call: ApplyCall) -> AbstractContextManager[object]:
        """An optimizer of `tf.compat.v1` or tf_keras is given gradients, which stay as they are.

        Args:
            call: what brings the step.

        Returns:
            A context to take the step in, so that a session runs what is added to its graph.
        """
        self.by_hand.forget()
        gradients, variables = [g for g, _ in call.pairs], [v for _, v in call.pairs]
        kind = type(inner_of(call.optimizer)).__name__
        hinders = "" if self._takeover is None else self._takeover.hinders(call)
        return self._step(call.optimizer, gradients, variables, kind, hinders)

    def clipped_step(self, call: ApplyCall) -> ReplacedCall | None:
        """As `step`, where ``--clip`` acts.

        Args:
            call: what brings the step.

        Returns:
            What the optimizer is to be handed; None where ``--clip`` does not act.
        """
        there = [gradient for gradient, _ in call.pairs if gradient is not None]
        if self._takeover is None or not there or self._takeover.hinders(call):
            return None
        self.by_hand.forget()
        variables = [variable for _, variable in call.pairs]
        places = [i for i, (gradient, _) in enumerate(call.pairs) if gradient is not None]
        track = self._track(call.optimizer, variables, type(inner_of(call.optimizer)).__name__)
        names = tuple(track.infos[i].name for i in places)
        done, clipped = self._takeover.take(call, self._before_clips(there), names)
        outcome = [done.threshold, done.coef, done.cosine, done.action]
        loss = self.losses.take(variables)
        row = self._row(call.optimizer, track, loss, done.stats, places, None, -1, outcome)
        self.side.emit(track, row)
        return clipped

    def _before_clips(self, gradients: list[Gradient]) -> list[Gradient]:
        """Gradients as they were before the script clipped them, and without a loss scale."""
        before, scale, _ = self._as_scaled(gradients)
        plain = cast("list[Gradient]", self.without_clips(before))
        if scale is None:
            return plain
        by = 1.0 / tf.cast(scale, tf.float32)  # as tf_keras has it
        return [
            gradient if now is was else _times(now, by)
            for gradient, was, now in zip(gradients, before, plain, strict=True)
        ]

    def moved_by_hand(self, variable: object, change: object) -> AbstractContextManager[object]:
        """A variable is about to be moved, by no optimizer that is known.

        Args:
            variable: it.
            change: what it is handed.

        Returns:
            As `step` has it.
        """
        asked = None if self.log.deaf else self.by_hand.moves(variable)
        if asked is None:
            return nullcontext()
        variables = [ref() for ref in asked.owner.variables]
        there = [each for each in variables if each is not None]
        place = next((i for i, each in enumerate(variables) if each is variable), None)
        if place is None or len(there) < len(variables):
            return nullcontext()  # an id that is used again
        gradients = asked.applied(place, change)
        if not self._are_applied(asked, gradients):
            return nullcontext()
        return self._step(
            self._loop_of(asked, there),
            gradients,
            there,
            "by hand",
            "updates by hand, which clip as the script has it. Apply them by "
            "keras.optimizers.SGD(rate).apply_gradients to clip here",
        )

    def _are_applied(self, asked: AskedGradients, gradients: Sequence[Gradient | None]) -> bool:
        """Whether the gradients tell what a loop applies; where not, the last words say so."""
        reason = ""
        if asked.calls > 1:
            reason = "its gradients were asked for several times, and how they are joined is"
        elif not all(g is not None and reached(g) for g in gradients):
            reason = "its gradients are of another tf.function, and what becomes of them is"
        if reason:
            ids = frozenset(id(ref()) for ref in asked.owner.variables)
            self._unseen.add((f"an update by hand is not recorded: {reason} not seen", ids))
        return not reason

    def _loop_of(self, asked: AskedGradients, variables: Sequence[Variable]) -> VariablesByHand:
        """The owner of these variables at their first step, by which its steps are one track."""
        key = tuple(map(id, variables))
        owner = self._loops.get(key)
        if owner is None or not owner.holds(variables):
            owner = self._loops[key] = asked.owner
        return owner

    def _step(
        self,
        optimizer: object,
        gradients: Sequence[Gradient | None],
        variables: Sequence[Variable],
        kind: str,
        unclipped: str,
    ) -> AbstractContextManager[object]:
        """A step that is recorded, and not clipped here: ``unclipped`` says why."""
        pairs = zip(gradients, variables, strict=True)
        present = {i: g for i, (g, _) in enumerate(pairs) if g is not None}
        if not present:
            return nullcontext()
        track = self._track(optimizer, variables, kind)
        places, own = list(present), own_clip(inner_of(optimizer))
        there, scale, clipped = self._as_scaled(list(present.values()))
        taped = self.before_arithmetic(track, [variables[i] for i in places], there)
        by_hand = isinstance(track, TentativeTrack)
        if (
            clipped is not None
            or own is not None
            or by_hand
            or inner_of(optimizer) is not optimizer
        ):
            taped = None
        depth = 0 if clipped is None else 1 + max(group.depth for group in clipped.groups)
        owns = [] if own is None else [own.placement(len(there), depth)]
        place = self.placements(track, there, clipped, owns)
        before = there if clipped is None else clipped.before
        names = [track.infos[i].name for i in places]
        stats, outcome = self._left(self._leaves(before, scale), clipped, own, names)
        loss = self.losses.lend(variables) if by_hand else self.losses.take(variables)
        row = self._row(optimizer, track, loss, stats, places, clipped, place, outcome)
        if self.replicas > 1:
            self._session.mention(
                f"norms on record of {kind} are those of one replica's gradients, before they are "
                "summed"
            )
        handed_over = self.side.emit(track, self.with_before(track, row, taped, places))
        if self._takeover is not None and unclipped:
            self._session.mention(f"--clip was not applied to {unclipped}")
        if track.ring is None and not tf.executing_eagerly():
            waits: AbstractContextManager[object] = tf.control_dependencies([handed_over])
            return waits
        return nullcontext()

    @staticmethod
    def _leaves(gradients: Sequence[Gradient], scale: tf.Tensor | None) -> list[tf.Tensor]:
        """The numbers of gradients for reading, over their loss scale."""
        leaves = [unread(values(merged(gradient))) for gradient in gradients]
        if scale is None:
            return leaves
        by = tf.cast(scale, tf.float64)
        return [narrow(widen(leaf) / tf.cast(by, widen(leaf).dtype), leaf.dtype) for leaf in leaves]

    def _left(
        self,
        leaves: Sequence[tf.Tensor],
        clipped: Clipped | None,
        own: OwnClip | None,
        names: Sequence[str],
    ) -> tuple[GradientStats, list[tf.Tensor]]:
        """The figures before clipping, and what the script's calls and the optimizer's own left."""
        if clipped is None and own is not None:
            choice, inputs = Choice(own.policy, "propagate"), StepGradients(leaves, tuple(names))
            done = step(self._engine, choice, {}, inputs, full=True)
            return done.stats, [done.threshold, done.coef, done.cosine, done.action]
        stats = measure(self._engine, leaves, tuple(names), 2.0, full=True)
        return stats, step_figures(clipped, stats, None if own is None else own.policy)

    def _row(
        self,
        optimizer: object,
        track: Track,
        loss: tf.Tensor | None,
        stats: GradientStats,
        places: Sequence[int],
        clipped: Clipped | None,
        place: int,
        outcome: Sequence[tf.Tensor],
    ) -> tf.Tensor:
        number, inner = self.side.number, inner_of(optimizer)
        scale = 1.0 if inner is optimizer else getattr(optimizer, "loss_scale", 1.0)
        batch = [self.side.loss(loss, (), stats.total_norm), number(rate_of(inner))]
        batch += [number(scale), number(STEPS), number(place)]
        if inner is not optimizer and getattr(optimizer, "dynamic", False):
            one = tf.ones_like(stats.total_norm)
            dropped = tf.reduce_sum(stats.nonfinite) > 0
            drop = (one * math.inf, one, one, one * SKIP)
            pairs = zip(drop, outcome, strict=True)
            outcome = [tf.where(dropped, d, tf.cast(o, d.dtype)) for d, o in pairs]
        figures = [getattr(stats, name) for name in FIGURES]
        head = self.side.head(batch, [] if clipped is None else clipped.figures())
        body = self.side.body([stats.total_norm, *outcome], figures, places, len(track.infos))
        return self.side.joined(head, body)

    def _track(self, optimizer: object, variables: Sequence[Variable], kind: str) -> Track:
        track = self._own.get(optimizer)
        if track is None or track.variables != list(map(id, variables)):
            index = self.tracks.next_index
            infos = [_described(variable, index) for variable in variables]
            facts = {
                "framework": "tensorflow",
                "backend": "tensorflow",
                "versions": versions_of("tensorflow", "numpy"),
            }
            ids = list(map(id, variables))
            kind_of_track = TentativeTrack if isinstance(optimizer, VariablesByHand) else Track
            track = self.tracks.add(kind, infos, ids, self.side.settle, facts, kind_of_track)
            track.ring = self.side.ring(HEAD_WIDTH + body_width(len(infos)))
            self._own[optimizer] = track
            self.moved_by(track, variables)
        return track

    def moved_by(self, track: Track, variables: Iterable[object]) -> None:
        """Note whose steps move these variables: what moves them by hand as well takes none.

        Args:
            track: of an optimizer, or of a loop without one.
            variables: TensorFlow's or Keras'.
        """
        if not isinstance(track, TentativeTrack):
            self._of_optimizers.append((set(map(id, map(raw_variable, variables))), track))
        for loop in self._own.values():
            if isinstance(loop, TentativeTrack):
                own = set(loop.variables)
                loop.beside([t for ids, t in self._of_optimizers if not own.isdisjoint(ids)])

    def finish(self) -> None:
        """Read what the device still holds, and say what was not seen."""
        self.tracks.finish()
        for sentence, ids in sorted(self._unseen, key=lambda each: each[0]):
            if all(ids.isdisjoint(others) for others, _ in self._of_optimizers):
                self._session.mention(sentence)
        for function in self.log.lost() if self.steps else ():  # else there are no norms
            self._session.mention(
                f"what tf.{function} returned went to no optimizer step as it was (through a "
                "tf.function's result, a variable, or arithmetic); norms on record are those of "
                "what the optimizers were given, after that clip"
            )


def step_figures(
    clipped: Clipped | None, stats: GradientStats, then: Policy | None = None
) -> list[tf.Tensor]:
    """`STEP` after the norm: what clip calls left.

    Args:
        clipped: the script's calls, or None.
        stats: figures before them.
        then: what the optimizer does after them by itself.

    Returns:
        Threshold, coefficient, cosine and action.
    """
    one = tf.ones_like(stats.total_norm)
    if clipped is None:
        return [one * math.inf, one, one, one * 0]
    outcome = clipped.outcome(stats, then)
    action = tf.where(outcome.clipped, one * CLIP, one * NONE)
    return [outcome.threshold, outcome.coef, outcome.cosine, action]


def rate_of(optimizer: object) -> object:
    """An optimizer's learning rate, wherever its class keeps it; NaN where it is not found."""
    for name in ("learning_rate", "_learning_rate", "_lr"):
        rate = getattr(optimizer, name, None)
        if rate is not None and not callable(rate):
            return rate
    return math.nan


def _described(variable: Variable, optimizer: int) -> TensorInfo:
    return TensorInfo(
        name=str(variable.name).partition(":")[0],
        shape=tuple(int(length) for length in variable.shape),
        dtype=str(getattr(variable.dtype, "name", variable.dtype)).removesuffix("_ref"),
        optimizer=optimizer,
    )


def _times(gradient: Gradient, factor: tf.Tensor) -> Gradient:
    by = tf.cast(factor, gradient.dtype)
    if isinstance(gradient, tf.IndexedSlices):
        return tf.IndexedSlices(gradient.values * by, gradient.indices, gradient.dense_shape)
    return gradient * by
