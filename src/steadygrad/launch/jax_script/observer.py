"""Observing a JAX script: every optimizer of optax, at the outermost call of its `update`.

The call is traced once and then runs compiled, so what is read of the gradients becomes part
of the compiled step and leaves it as `telling` says. Nothing is put into the
optimizer's state, and the gradients handed on are the script's own arrays.
"""

from __future__ import annotations

import contextlib
import functools
import math
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple, ParamSpec, TypeVar, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from steadygrad.jax._x64 import wide
from steadygrad.jax.dropping import dropped_where
from steadygrad.jax.engine import floating_leaves
from steadygrad.launch.jax_script.acting import HostMemory, clip_by, clips_here
from steadygrad.launch.jax_script.flight import (
    ALONE,
    AROUND_A_FUNCTION,
    BY_HAND,
    LIMITS,
    PREPARES,
    SAM,
    ClippedBy,
    Flight,
    Update,
    floating,
    is_clip,
    is_ours,
)
from steadygrad.launch.jax_script.internals import (
    Made,
    axis_sizes,
    current_trace,
    is_batched,
    is_differentiated,
    is_of_script,
    is_traced,
)
from steadygrad.launch.jax_script.losses import Losses, Reference, reference
from steadygrad.launch.jax_script.rows import DROPPED, OUTCOME, eager_row_of, packed, row_of
from steadygrad.launch.jax_script.telling import MAIL, lost, now, settle, tell
from steadygrad.launch.jax_script.track import Arrival, Book, JaxTrack
from steadygrad.launch.jax_script.weights import Start, weights_of
from steadygrad.launch.placements import Placement
from steadygrad.policies.choice import Choice, resolve
from steadygrad.policies.stepping import Stepped
from steadygrad.runlog.records import TensorInfo

if TYPE_CHECKING:
    import optax
    from jax.typing import ArrayLike

    from steadygrad.launch.contracts import RunContext
    from steadygrad.typing import PyTree

Answer = TypeVar("Answer")
P = ParamSpec("P")
Structure = tuple[tuple[str, tuple[int, ...], str], ...]


class Owner:
    """Stands for one transformation.

    Attributes:
        made: which function made it.
        initialised: whether a state was ever made by it; not so where it is made anew in each
            step, for a state that another one made.
    """

    def __init__(self, made: Made) -> None:
        self.made = made
        self.initialised = False
        self.tracks: dict[Structure, JaxTrack] = {}


MOST_MADE = 8
"""States made in traced code that are remembered until a step is taken on them."""

LEFT_UNREAD = (
    "what the script's clip by units or tensors (adaptive_grad_clip, clip_by_block_rms) leaves of "
    "the gradients in compiled steps is not on record, nor which steps it clips: to read it could "
    "change the last bits of the weights. Even reading the gradients may, where one compiled step "
    "calls such an optimizer twice or the model has layer norms"
)


HAND_UNREAD = (
    "the script's own code clips or scales gradients by more than one constant bound: norms on "
    "record are those before it, and what it leaves is not on record"
)

LOSS_UNREAD = (
    "the loss of a jax.grad in compiled code is not on record: it holds a square root, and to "
    "read it could change the last bits of the weights; return the loss of jax.value_and_grad "
    "to have it"
)


class JaxObserver:
    """Follows every optax optimizer of one process.

    Args:
        session: the run.
        losses: those of the script.
    """

    backwards = 0
    vmapped = False

    def __init__(self, session: RunContext, losses: Losses) -> None:
        self._session, self._losses = session, losses
        self._book = Book(session, losses)
        self._tracks: list[JaxTrack] = []
        self._latest: dict[Structure, JaxTrack] = {}
        self._begun: dict[tuple[tuple[str, tuple[int, ...]], ...], tuple[Owner, Start | None]] = {}
        self._here = _Here()
        self._choice = self._wanted()

    def _wanted(self) -> Choice | None:
        plan = self._session.plan
        if plan.clip is None and plan.on_nonfinite is None:
            return None
        mode = plan.on_nonfinite
        if mode == "raise":
            self._session.mention(
                "--on-nonfinite raise: compiled code cannot raise; steps were skipped"
            )
            mode = "skip"
        choice = resolve(plan.clip or "none", mode)
        return None if choice.only_observes and plan.clip is None else choice

    @property
    def steps(self) -> int:
        """Steps seen so far."""
        return sum(track.steps for track in self._tracks)

    def finish(self) -> None:
        """Wait for what is still on its way; the run file is closed next."""
        if self._tracks:
            settle()
            for track in self._tracks:
                track.release()
            if missing := lost():
                self._session.mention(
                    f"{missing} steps or losses are not on record: there was no memory for them"
                )
            self._book.finish()
            writer = self._session.writer()
            counts = [count for track in self._tracks for count in track.loop_counts]
            if writer is not None and counts:
                writer.update_info(loop={"optimizers": counts})

    # -- what the patches of optax call --------------------------------------------------------

    def starts(self, owner: Owner, params: object, state: PyTree) -> None:
        """The state of an optimizer is made: a training begins."""
        owner.initialised = True
        made = [reference(leaf) for leaf in jax.tree.leaves(state) if is_traced(leaf)]
        if made:
            self._here.made.append(made)
        names, leaves, _ = floating_leaves(params)
        key = tuple((n, tuple(x.shape)) for n, x in zip(names, leaves, strict=True))
        self._begun[key] = owner, weights_of(leaves)
        if owner.tracks:
            settle()  # the last steps of the training before
        for track in owner.tracks.values():
            track.begins_anew(bool(jax.tree.leaves(state)))

    def initialising(
        self,
        owner: Owner,
        original: Callable[..., PyTree],
        args: tuple[PyTree, ...],
        kwargs: Mapping[str, object],
    ) -> PyTree:
        """An `init` is called; those of the transformations inside belong to it."""
        outermost, self._here.initialising = not self._here.initialising, True
        try:
            state = original(*args, **kwargs)
        finally:
            self._here.initialising = not outermost
        if outermost and args:
            what = "a JAX optimizer's start is not observed"
            self._guarded(what, self.starts, owner, args[0], state)
        return state

    @contextlib.contextmanager
    def window(self, closes: ArrayLike) -> Iterator[None]:
        """`optax.MultiSteps` works: the optimizer inside of it steps on the average.

        Args:
            closes: whether the micro-batch at hand is the last of its step.
        """
        before, self._here.closes = self._here.closes, closes
        flight = self._here.flight
        if flight is not None:  # a chain around it is called at every micro-batch
            flight.closes = closes
            if flight.acting:
                self._session.mention(
                    "--clip was applied to every micro-batch, since a chain stands around "
                    "optax.MultiSteps; put MultiSteps around the whole chain"
                )
        try:
            yield
        finally:
            self._here.closes = before

    def update(
        self, owner: Owner, original: Update, args: tuple[PyTree, ...], kwargs: Mapping[str, object]
    ) -> tuple[PyTree, PyTree]:
        """An `update` is called, or traced: the outermost one is a step."""
        if self._here.flight is not None:
            return self._inside(self._here.flight, owner.made, original, args, kwargs)
        if not args:  # by keyword
            return original(*args, **kwargs)
        return self._outermost(owner, original, args, kwargs)

    def _outermost(
        self, owner: Owner, original: Update, args: tuple[PyTree, ...], kwargs: Mapping[str, object]
    ) -> tuple[PyTree, PyTree]:
        gradients = floating(args[0])
        flight = Flight(gradients, current_trace(), _scalar(kwargs.get("value")))
        if self._here.alone is not None and flight.continues(self._here.alone, gradients):
            self._here.withdraw()
        elif owner.made.maker not in ALONE and not any(map(self._losses.is_gradient, gradients)):
            what = "a clip of the script's own code is not observed"
            self._guarded(what, flight.hears, gradients, self._losses.is_gradient)
        inside = any(map(is_differentiated, gradients))  # of another training, as in MAML
        flight.fresh = len(args) > 1 and not inside and self._here.has_made(args[1])
        flight.count = _count_in(args[1]) if len(args) > 1 else None
        self._here.alone, self._here.flight = None, flight
        try:
            with self._losses.muted():
                step = self._clipped(owner, flight, args)
                if step is None:
                    result = self._inside(flight, owner.made, original, args, kwargs)
                else:
                    result = self._applied(owner, flight, step, original, args, kwargs)
        finally:
            self._here.flight = None
        what = "what an optimizer hands on is not observed"
        flight.raw = self._guarded(what, _handed_on, flight, result) or ()
        if not flight.is_step:
            self._here.alone = flight
            self._here.comes_behind(flight)
        elif step is None:
            weights = args[2] if len(args) > 2 else kwargs.get("params")
            what = "a JAX step is not observed"
            self._guarded(what, self._tell, owner, flight, args[0], weights)
        else:
            self._guarded("a JAX step is not recorded", self._tell_clipped, step, flight)
        return result

    def _inside(
        self,
        flight: Flight,
        made: Made,
        original: Update,
        args: tuple[PyTree, ...],
        kwargs: Mapping[str, object],
    ) -> tuple[PyTree, PyTree]:
        before = floating(args[0]) if args else []
        flight.enters(made.maker, before)
        flight.makers.append(made.maker)
        if self._replaces(flight, made, before):
            self._session.mention(f"the script's own {made.maker} was replaced by --clip")
            flight.ends(before, before)
            return args[0], args[1]
        result = original(*args, **kwargs)
        self._guarded(
            "a clip of the script is not observed",
            _note,
            flight,
            made,
            before,
            original,
            args,
            result,
        )
        return result

    def _guarded(
        self, what: str, act: Callable[P, Answer], *args: P.args, **kwargs: P.kwargs
    ) -> Answer | None:
        try:
            return act(*args, **kwargs)
        except Exception as error:
            self._session.trouble(what, error)
            return None

    # -- one step, observed --------------------------------------------------------------------

    def _tell(self, owner: Owner, flight: Flight, updates: PyTree, weights: PyTree) -> None:
        names = floating_leaves(updates)[0]
        leaves = [lax.stop_gradient(leaf) for leaf in flight.gradients]
        if not leaves:
            return
        if any(is_batched(leaf) for leaf in leaves):
            self.vmapped = True
            self._session.mention(
                "an optimizer inside of jax.vmap is not observed: make the gradients there, and "
                "call the optimizer once, outside, with all of them. Adam and others that work by "
                "element step the same; a clip by norm then takes them together"
            )
            return
        track = self._track(owner, flight.kind, names, leaves)
        for clip, change in flight.unseen:
            self._session.mention(
                f"the script's {clip} stands behind {change}: norms on record are those of the "
                "gradients before both, and what that clip does to them is not on record"
            )
        for name in flight.by_code:
            self._session.mention(
                f"the script's {name} clips by code of its own: norms on record are those before "
                "it, and what it leaves is not on record; optax.clip_by_global_norm is followed"
            )
        head, fixed = self._head(flight)
        by: ClippedBy = "nothing" if flight.own is not None else flight.clipped_by
        if flight.own is not None:
            head.update({name: getattr(flight.own, name) for name in OUTCOME})
        elif by != "nothing" and isinstance(flight.threshold, (int, float)):
            fixed["threshold"] = head["threshold"] = float(flight.threshold)
        elif by != "nothing":
            head["threshold"] = flight.threshold
        if flight.dropped is not None:
            head[DROPPED] = flight.dropped
        reads_left = by == "parts" and flight.traces_on
        track.raw = [names[place] for place in flight.raw]
        if flight.closes is None and self._here.closes is None:  # no micro-batches
            arrays = [x for x in jax.tree.leaves(weights) if isinstance(x, jax.Array)]
            track.steps_on([x for x in arrays if not is_traced(x)])  # Equinox has functions, too
        if any(is_traced(leaf) for leaf in leaves):
            if reads_left and not flight.is_repeatable:
                self._session.mention(HAND_UNREAD if flight.is_apart else LEFT_UNREAD)
            again = reads_left and flight.is_repeatable
            leaves, left = flight.again() if again else (leaves, [])
            row = row_of(leaves, left, head, by, tuple(axis_sizes()), flight.is_apart)
        else:
            row = eager_row_of(leaves, flight.left if reads_left else [], head, by)
        each = flight.closes is not None and not flight.renews
        late, track.late = track.late, []
        behind: list[Placement] = []
        arrival = Arrival(
            fixed,
            (*late, *flight.placed),
            behind,
            fresh=flight.fresh,
            each=each,
            renews=flight.renews,
        )
        self._send(track, row, arrival)
        self._here.last = LastStep(
            [reference(leaf) for leaf in flight.gradients],
            behind if is_traced(row) else track.late,
        )

    def _head(self, flight: Flight) -> tuple[dict[str, ArrayLike], dict[str, float]]:
        """A row's first numbers: those on the device, and those that only the host has."""
        head: dict[str, ArrayLike] = {}
        loss, rate = self._losses.here(flight.trace, flight.handed), flight.rate
        loss = flight.value if loss is None else loss
        if self._losses.unread:
            self._session.mention(LOSS_UNREAD)
        if loss is not None:
            head.update(loss=jnp.real(loss), told=1)
        closes = self._here.closes if flight.closes is None else flight.closes
        if closes is not None:
            head["steps"] = closes
        if flight.count is not None:
            head["count"] = flight.count
        if isinstance(rate, (int, float)):
            return head, {"lr": float(rate)}
        return {**head, "lr": rate}, {}

    def _send(self, track: JaxTrack, row: jax.Array, arrival: Arrival) -> None:
        if is_traced(row):
            whole = math.prod(axis_sizes().values())
            arrival = arrival._replace(devices=min(whole, jax.local_device_count()))
            tell(functools.partial(track.arrive, arrival=arrival), row)
        else:  # at once, while the losses of the next step are not here
            figures = np.asarray(row)
            MAIL.empty()
            track.arrive(figures, now(), arrival)

    def _track(
        self, owner: Owner, kind: str, names: tuple[str, ...], leaves: Sequence[jax.Array]
    ) -> JaxTrack:
        shapes = [(tuple(leaf.shape), str(leaf.dtype)) for leaf in leaves]
        structure = tuple((n, *s) for n, s in zip(names, shapes, strict=True))
        begun = self._begun.pop(tuple((name, shape) for name, shape, _ in structure), None)
        track = owner.tracks.get(structure)
        if track is None and not owner.initialised and begun is None:
            track = self._latest.get(structure)  # made anew in every step
        if track is None:
            track = JaxTrack(self._book, kind, [TensorInfo(*each) for each in structure])
            self._tracks.append(track)
            writer = self._session.writer()  # here, in the script's own thread
            if writer is not None and self._losses.scaled:
                writer.update_info(amp=True)
        if begun is not None:
            track.start = begun[1]
        owner.tracks[structure] = self._latest[structure] = track
        return track

    # -- one step, clipped ---------------------------------------------------------------------

    def _clipped(
        self, owner: Owner, flight: Flight, args: tuple[PyTree, ...]
    ) -> ClippedStep | None:
        """Our policy's work on the gradients; None where it has none to do here."""
        if self._choice is None or not self._may_act(owner.made, flight.gradients):
            return None
        return self._guarded("a JAX optimizer is not clipped", self._clip, owner, flight, args)

    def _may_act(self, made: Made, gradients: Sequence[jax.Array]) -> bool:
        assert self._choice is not None
        hindrance = ""
        if is_ours(made):
            hindrance = "a clip or guard that the script makes itself is left to it"
        elif any(is_batched(leaf) for leaf in gradients):
            hindrance = "an optimizer inside of jax.vmap is not clipped"
        elif not clips_here(self._choice, tuple(axis_sizes())):
            hindrance = "--clip with a memory does not reach into pmap and shard_map: not clipped"
        if hindrance:
            self._session.mention(hindrance)
        return bool(gradients) and not hindrance and made.maker not in ALONE

    def _clip(self, owner: Owner, flight: Flight, args: tuple[PyTree, ...]) -> ClippedStep:
        assert self._choice is not None
        names, leaves, rebuild = floating_leaves(args[0])
        track = self._track(owner, "", names, leaves)
        if BY_HAND in {placement.function for placement in flight.placed}:
            args = (rebuild(self._as_before(flight, leaves)), *args[1:])
        if track.memory is None:
            track.memory = HostMemory(self._choice.policy)
        counts = 1 if self._here.closes is None else self._here.closes
        done, updates = clip_by(self._choice, track.memory, counts, args, tuple(axis_sizes()))
        flight.replaced(floating(updates))
        return ClippedStep(track, done, updates, self._choice.may_skip)

    def _as_before(self, flight: Flight, leaves: list[jax.Array]) -> list[jax.Array]:
        """The gradients before the script's own code has clipped them, where it has."""
        if not all(math.isfinite(placement.max_norm) for placement in flight.placed):
            self._session.mention("the script's own code still clips or scales, before --clip")
            return leaves
        self._session.mention("the script's own clip by hand was replaced by --clip")
        pairs = zip(flight.gradients, leaves, strict=True)
        return [before.astype(leaf.dtype) for before, leaf in pairs]

    def _applied(
        self,
        owner: Owner,
        flight: Flight,
        step: ClippedStep,
        original: Update,
        args: tuple[PyTree, ...],
        kwargs: Mapping[str, object],
    ) -> tuple[PyTree, PyTree]:
        def go(gradients: PyTree, state: PyTree) -> tuple[PyTree, PyTree]:
            flight.begins()
            handed = (gradients, state, *args[2:])
            return self._inside(flight, owner.made, original, handed, kwargs)

        if step.may_skip:
            return dropped_where(step.done.skip, go, step.updates, args[1])
        return go(step.updates, args[1])

    def _replaces(self, flight: Flight, made: Made, before: Sequence[jax.Array]) -> bool:
        if self._choice is None or not is_clip(made):
            return False
        return flight.acting or (made.maker in LIMITS and len(flight.makers) == 1)

    def _tell_clipped(self, step: ClippedStep, flight: Flight) -> None:
        head, fixed = self._head(flight)
        step.track.kind = flight.kind
        for name in flight.by_code:
            self._session.mention(f"the script's {name} still clips, behind --clip")
        if flight.beyond:
            self._session.mention(
                "--clip reached the first gradients of a SAM alone: those that it asks for itself "
                "(opaque_mode=True) are clipped by a clip in front of its optimizer, if by any"
            )
        with wide():
            head.update({name: getattr(step.done, name) for name in OUTCOME})
            row = packed(head, step.done.stats, tuple(axis_sizes()))
        self._send(step.track, row, Arrival(fixed, renews=flight.renews))


def _handed_on(flight: Flight, result: tuple[PyTree, PyTree]) -> tuple[int, ...]:
    """Places of the updates that are gradients, in an optimizer that has updates of others."""
    updates = floating(result[0])
    if len(updates) != len(flight.left):
        return ()
    pairs = zip(updates, flight.left, strict=True)
    same = tuple(place for place, (update, leaf) in enumerate(pairs) if update is leaf)
    return same if len(same) < len(updates) else ()


def _count_in(state: PyTree) -> ArrayLike | None:
    """How many steps an optimizer's state has taken, as most of optax count them."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        named = bool(path) and getattr(path[-1], "name", "") == "count"
        if named and np.shape(leaf) == () and jnp.issubdtype(jnp.result_type(leaf), jnp.integer):
            count: ArrayLike = leaf
            return count
    return None


def _scalar(value: object) -> ArrayLike | None:
    """What the script hands an optimizer as ``value``, where it is one number."""
    one = value is not None and np.shape(cast("ArrayLike", value)) == ()
    return cast("ArrayLike", value) if one else None


class ClippedStep(NamedTuple):
    """A step that our policy has clipped, before the optimizer is called.

    Attributes:
        track: where it is recorded.
        done: what the policy did.
        updates: the gradients to hand on.
        may_skip: whether the step may be dropped.
    """

    track: JaxTrack
    done: Stepped
    updates: PyTree
    may_skip: bool


class LastStep(NamedTuple):
    """The last step that was told.

    Attributes:
        gradients: those that it was given, none of which it keeps in memory.
        behind: where to note a clip call that comes after it.
    """

    gradients: Sequence[Reference]
    behind: list[Placement]


class _Here(threading.local):
    """What each thread is in the middle of: the `update` under way, and its micro-batch.

    Attributes:
        flight: that `update`.
        alone: a clip that was called by itself, and may belong to the step that follows.
        last: the last step.
        made: states that were made in traced code, the last ones.
        noted: how many of the calls noted last are of the clip that was called by itself.
    """

    flight: Flight | None = None
    alone: Flight | None = None
    initialising: bool = False
    closes: ArrayLike | None = None
    last: LastStep | None = None
    noted: int = 0

    def __init__(self) -> None:
        self.made: deque[list[Reference]] = deque(maxlen=MOST_MADE)

    def has_made(self, state: PyTree) -> bool:
        """Whether a state is one that the code which is being traced has just made."""
        leaves = [leaf for leaf in jax.tree.leaves(state) if is_traced(leaf)]
        return any(
            len(made) == len(leaves)
            and all(ref() is leaf for ref, leaf in zip(made, leaves, strict=True))
            for made in self.made
        )

    def comes_behind(self, flight: Flight) -> None:
        """Note a clip that is handed what the last step was given: it comes too late."""
        self.noted = 0
        if self.last is None or len(self.last.gradients) != len(flight.gradients):
            return
        pairs = zip(self.last.gradients, flight.gradients, strict=True)
        if all(ref() is leaf for ref, leaf in pairs):
            self.noted = len(flight.placed)
            self.last.behind.extend(replace(placement, late=True) for placement in flight.placed)

    def withdraw(self) -> None:
        """The clip was called for another step, which has come."""
        if self.last is not None and self.noted:
            del self.last.behind[-self.noted :]
        self.noted = 0


def _note(
    flight: Flight,
    made: Made,
    before: Sequence[jax.Array],
    original: Update,
    args: tuple[PyTree, ...],
    result: tuple[PyTree, PyTree],
) -> None:
    """What a transformation inside of an optimizer has done."""
    if is_ours(made):
        flight.clip_acted(result[1])
    elif is_clip(made):
        flight.clipped(made, original, args, before, floating(result[0]))
    elif made.maker in PREPARES:
        flight.prepared(made, before, floating(result[0]))
    elif made.maker == "apply_if_finite":
        flight.guarded(made, before, result[1])
    elif made.maker == "scale" and "step_size" in made.values:
        flight.scaled_by(made.values["step_size"], before)
    elif made.maker == "scale_by_schedule" and "step_size_fn" in made.values:
        schedule = cast("Callable[[jax.Array], ArrayLike]", made.values["step_size_fn"])
        there = current_trace().levels == flight.trace.levels
        flight.scaled_by(
            schedule(cast("optax.ScaleByScheduleState", args[1]).count) if there else math.nan,
            before,
        )
    elif made.maker == SAM:
        flight.moved(result[1])
    elif flight.hands_gradients(before):
        of_script = original
        if made.maker in AROUND_A_FUNCTION:
            of_script = cast("Update", made.values.get("f", original))
        if is_of_script(of_script):
            flight.clipped_inside(of_script, made.maker, before, floating(result[0]))
    flight.ends(before, floating(result[0]))
