"""Observing a Keras script.

`BaseOptimizer.apply` is the one place that `fit` and loops of one's own pass. It is
traced there, so its figures are made part of the compiled step and leave it sideways
(`keras_sides.py`). Unlike `steadygrad.keras.attach` this puts nothing into the optimizer:
what the script saves stays as it was. Where gradients are accumulated, micro-batches
leave it too, without figures, and are joined to the step that they are part of.

With `--clip` an optimizer is attached as it is built, in a form that is saved as a plain
one, and its figures leave the step the same way.
"""

from __future__ import annotations

import contextlib
import functools
import math
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from steadygrad.launch.keras_script.sides import JaxSide, TensorFlowSide, TorchSide
from steadygrad.policies.choice import resolve
from steadygrad.policies.stepping import Stepped, measure
from steadygrad.runlog.facts import versions_of
from steadygrad.runlog.records import ACTIONS, StepRecord, TensorInfo
from steadygrad.stats import GradientStats

if TYPE_CHECKING:
    from steadygrad.launch.session import Session

BATCH = ("loss", "lr", "kind")
"""What every micro-batch tells; ``kind`` is of the three below, as in
`steadygrad.keras.hook`, which may not be loaded before a script has chosen its devices."""
STEP = ("norm", "threshold", "coef", "cosine", "action")
HEAD = BATCH + STEP
LEAVES = ("norms", "max_abs", "nonfinite", "zeros")
WAITS, STEPS, DROPPED = 0, 1, 2


class KerasObserver:
    """Follows every Keras optimizer of one process.

    Args:
        session: the run.
        keras: the imported module.
    """

    backwards = 0

    def __init__(self, session: Session, keras: ModuleType) -> None:
        self._session = session
        self._keras = keras
        self._tracks: weakref.WeakKeyDictionary[Any, Track] = weakref.WeakKeyDictionary()
        self._all: list[Track] = []
        self._kinds: list[dict[str, Any]] = []
        self._clipped: weakref.WeakSet[Any] = weakref.WeakSet()
        self._inside = 0
        self._shares = False
        self._scaled: tuple[Any, Any] = (None, None)
        self._watches: weakref.WeakKeyDictionary[Any, Any] = weakref.WeakKeyDictionary()
        self.loss: Any = None
        self.model: Any = None

    @functools.cached_property
    def backend(self) -> Any:
        """What Keras runs on: made at the first step, since a script configures its devices
        before anything uses them."""
        from steadygrad.keras import engines

        return engines.current()

    @functools.cached_property
    def side(self) -> Any:
        """How figures leave a step."""
        name = self._keras.backend.backend()
        if name == "torch":
            return TorchSide(self._session)
        return TensorFlowSide() if name == "tensorflow" else JaxSide()

    @property
    def steps(self) -> int:
        """Steps seen so far."""
        return sum(track.steps for track in self._all)

    @property
    def on_jax(self) -> bool:
        """Whether training passes its state around."""
        return bool(self._keras.backend.backend() == "jax")

    def guarded(self, what: str, act: Callable[..., Any], *given: Any) -> None:
        """Call ``act``; what it raises is a trouble of ours, not the script's."""
        try:
            act(*given)
        except Exception as error:
            self._session.trouble(what, error)

    def tracks_of(self, optimizer: Any) -> list[Track]:
        """What is known of an optimizer's steps, or its members'."""
        inner = getattr(optimizer, "inner_optimizer", optimizer)
        family = [inner, *getattr(inner, "_inner_optimizers", [])]
        return [self._tracks[one] for one in family if one in self._tracks]

    def watch_weights(self, model: Any) -> None:
        """A model has made its training function: sample its weights around that."""
        from steadygrad.launch.keras_script.weights import WeightWatch

        watch = self._watches.get(model)
        if watch is None:
            watch = self._watches[model] = WeightWatch(self, model)
        model.train_function = watch.around(model.train_function)

    def scaled(self, scaled: Any, loss: Any) -> None:
        """A loss was multiplied by a loss scale."""
        self._scaled = (scaled, loss)
        if self._keras.backend.backend() == "torch":
            self.loss = loss.detach()

    def unscaled(self, loss: Any) -> Any:
        """What a loss was before its loss scale."""
        scaled, plain = self._scaled
        return plain if loss is scaled else loss

    @contextlib.contextmanager
    def sharing(self) -> Iterator[None]:
        """Several optimizers step on one loss."""
        self._shares = True
        yield
        self._shares = False
        if self._session.plan.clip is None:
            self.loss = None  # else the hook of them all tells it yet

    def before_apply(self, optimizer: Any, gradients: Sequence[Any], variables: Any) -> None:
        """An optimizer's `apply` is called, or traced, with these gradients."""
        if variables is None:
            variables = optimizer._trainable_variables
        try:
            if self._clips(optimizer):
                return  # its hook tells
            variables = list(variables)
            pairs = zip(gradients, variables, strict=True)
            present = {i: g for i, (g, _) in enumerate(pairs) if g is not None}
            if present:
                self._observe(optimizer, variables, present)
        except Exception as error:
            if type(error).__name__ == "_RequestedStop":
                raise  # so tf.distribute ends the threads of replicas
            self._session.trouble("a Keras step is not observed", error)

    @contextlib.contextmanager
    def building(self, optimizer: Any) -> Iterator[None]:
        """An optimizer is built; one inside of another belongs to it."""
        self._inside += 1
        yield
        self._inside -= 1
        if self._inside == 0:
            self.clip(optimizer)

    def clip(self, optimizer: Any) -> bool:
        """Whether an optimizer's class was changed just now, to clip."""
        if self._session.plan.clip is None or optimizer in self._clipped:
            return False
        try:
            return self._take_over(optimizer)
        except Exception as error:
            self._session.trouble("a Keras optimizer is not clipped", error)
            return False

    def _take_over(self, optimizer: Any) -> bool:
        from steadygrad.keras import classes
        from steadygrad.keras.attaching import unwrap
        from steadygrad.keras.hook import Hook

        outer, inner = unwrap(optimizer)
        members = list(getattr(inner, "_inner_optimizers", []))
        self._clipped.update([optimizer, inner, *members])
        standing = classes.hook_of(inner)
        if standing is not None:
            if standing.watcher is None:
                self._session.mention("an optimizer that the script attaches itself is left to it")
            elif outer is not None:
                classes.tell(outer)
            return False
        mode = self._session.plan.on_nonfinite
        if mode == "raise":
            self._session.mention(
                "--on-nonfinite raise: compiled code cannot raise; steps were skipped"
            )
            mode = "skip"
        choice = resolve(self._session.plan.clip or "none", mode, type(inner).__name__)
        hook = Hook(choice.policy, choice.on_nonfinite)
        hook.watcher = functools.partial(self._tell, inner)
        for one in (inner, *members):
            self._replace_own_clipping(one)
        classes.install(inner, hook, unseen=True)
        if outer is not None:
            classes.tell(outer)
        return inner is optimizer

    def _replace_own_clipping(self, optimizer: Any) -> None:
        for name in ("clipnorm", "clipvalue", "global_clipnorm"):
            value = getattr(optimizer, name, None)
            if value:
                setattr(optimizer, name, None)
                self._session.mention(
                    f"{type(optimizer).__name__}'s own {name}={value} was replaced by --clip"
                )

    def _clips(self, optimizer: Any) -> bool:
        if self._session.plan.clip is None or optimizer not in self._clipped:
            return False
        from steadygrad.keras.classes import hook_of

        found = hook_of(optimizer)
        return found is None or found.watcher is not None

    def _tell(
        self, optimizer: Any, done: Stepped, variables: Sequence[Any], kind: Any = None
    ) -> None:
        """A clipped optimizer's step is taken, or traced."""
        try:
            track = self._track(optimizer, optimizer._trainable_variables)
            batch = self._batch(optimizer, variables, kind, done.stats.total_norm)
            places = [optimizer._get_variable_index(variable) for variable in variables]
            outcome = [done.threshold, done.coef, done.cosine, done.action]
            with self.backend.engine.scope():
                body = self._body(track, done.stats, places, outcome)
                self.side.emit(track, self.side.joined(batch, body))
        except Exception as error:
            self._session.trouble("a clipped Keras step is not recorded", error)

    def finish(self) -> None:
        """Read what the device still holds."""
        if self._all:
            self.side.settle()
        for track in self._all:
            if track.ring is not None:
                track.ring.stop_reading()
            track.drain()

    def _track(self, optimizer: Any, variables: Sequence[Any]) -> Track:
        track = self._tracks.get(optimizer)
        if track is None or len(track.infos) < len(variables):
            from steadygrad.keras.sampling import owners

            kinds = owners(self.model)
            infos = [_described(v, len(self._all), kinds.get(id(v), "")) for v in variables]
            track = Track(self._session, infos, len(self._all), variables, self.side)
            track.ring = self.side.ring(len(HEAD) + len(LEAVES) * len(infos))
            self._tracks[optimizer] = track
            self._all.append(track)
            self._announce(type(optimizer).__name__)
        return track

    def _announce(self, kind: str) -> None:
        writer = self._session.writer()
        if writer is not None:
            self._kinds.append({"class": kind, "index": len(self._kinds)})
            backend = self._keras.backend.backend()
            writer.update_info(
                framework="keras",
                backend=backend,
                versions=versions_of("keras", backend, "numpy"),
                optimizers=self._kinds,
            )

    def _observe(self, optimizer: Any, variables: list[Any], present: dict[int, Any]) -> None:
        track = self._track(optimizer, variables)
        places, held = list(present), [variables[i] for i in present]
        gradients, kind = self._averaged(optimizer, variables, held, list(present.values()))
        batch = self._batch(optimizer, held, kind, gradients[0])
        gradients, _ = self.backend.reduced(gradients)

        def body() -> Any:
            with self.backend.engine.scope():
                leaves = [self.backend.leaf(gradient) for gradient in gradients]
                names = tuple(track.infos[i].name for i in places)
                stats = measure(self.backend.engine, leaves, names, 2.0, full=True)
                one = self.backend.engine.xp.ones_like(stats.total_norm)
                return self._body(track, stats, places, [one * math.inf, one, one, one * 0])

        width = len(STEP) + len(LEAVES) * len(track.infos)
        found = body() if kind is None else self.side.when(kind, body, width)
        with self.backend.engine.scope():
            self.side.emit(track, self.side.joined(batch, found))

    def _averaged(
        self, optimizer: Any, variables: list[Any], held: list[Any], gradients: list[Any]
    ) -> tuple[list[Any], Any]:
        """The gradients that the optimizer acts on, and what kind of micro-batch this is."""
        from steadygrad.keras.hook import accumulators, name_scope

        scale, every = optimizer.loss_scale_factor, optimizer.gradient_accumulation_steps
        if scale is not None:
            gradients = [gradient / scale for gradient in gradients]
        if not every:
            return gradients, None
        if not optimizer.built:  # as it would itself, a moment later
            with name_scope(optimizer):
                optimizer.build(variables)
        sums = [self.backend.value(one) for one in accumulators(optimizer, held)]
        pairs = zip(gradients, sums, strict=True)
        closes = (self.backend.value(optimizer._iterations) + 1) % every == 0
        kind = self.backend.engine.xp.where(closes, STEPS, WAITS)
        return [(self.backend.dense(g) + s) / every for g, s in pairs], kind

    def _batch(self, optimizer: Any, variables: Sequence[Any], kind: Any, beside: Any) -> list[Any]:
        rate = self.side.number(getattr(optimizer, "learning_rate", math.nan))
        loss, self.loss = self.loss, self.loss if self._shares else None
        return [
            self.side.loss(loss, variables, beside),
            rate,
            self.side.number(1 if kind is None else kind),
        ]

    def _body(
        self, track: Track, stats: GradientStats, places: list[int], outcome: list[Any]
    ) -> Any:
        """The figures of a step, in the order of `STEP` and `LEAVES`."""
        figures = [getattr(stats, name) for name in LEAVES]
        return self.side.body([stats.total_norm, *outcome], figures, places, len(track.infos))


class Track:
    """One optimizer's steps on their way into the run file."""

    def __init__(
        self,
        session: Session,
        infos: list[TensorInfo],
        index: int,
        variables: Sequence[Any],
        side: Any,
    ) -> None:
        self.infos, self.index, self.steps = infos, index, 0
        self.variables = list(variables)
        self.ring: Any = None
        self.ids: Any = None
        self._session, self._side = session, side
        self._rows: deque[Any] = deque()
        self._losses: list[float] = []
        self._lock = threading.Lock()

    @property
    def writer(self) -> Any:
        """The run file's; None where there is none."""
        return self._session.writer()

    def settled(self) -> int:
        """How many steps have been taken, once all of them are written."""
        self._side.settle()
        self.drain()
        return self.steps

    def push(self, row: Any) -> None:
        """Take one step's row; called from whichever thread the backend has."""
        self._rows.append(np.asarray(row, np.float64))
        self.drain()

    def drain(self) -> None:
        """Write the rows that have come, in order."""
        with self._lock:
            if self.ring is not None:
                self._rows.extend(self.ring.read())
            while self._rows:
                self._write(self._rows.popleft())

    def _write(self, row: Any) -> None:
        """Write one row; called from threads that no error may end."""
        try:
            self._sort(row)
        except Exception as error:
            self._session.trouble("a Keras step is not recorded", error)

    def _sort(self, row: Any) -> None:
        """Tell a step from a micro-batch, and keep or write it."""
        head = dict(zip(HEAD, row[: len(HEAD)].tolist(), strict=True))
        kind = int(head.pop("kind"))
        if kind != DROPPED:
            self._losses.append(head["loss"])
        if kind == STEPS:  # a step's loss is the mean of its micro-batches'
            head["loss"], self._losses = sum(self._losses) / len(self._losses), []
        if kind != WAITS:
            self._write_step(head, row[len(HEAD) :].reshape(len(LEAVES), len(self.infos)))

    def _write_step(self, head: dict[str, Any], figures: Any) -> None:
        writer = self.writer
        step, self.steps = self.steps, self.steps + 1
        if writer is None:
            return
        if self.ids is None:
            self.ids = np.asarray(writer.add_tensors(self.infos), np.int64)
        head["action"] = ACTIONS[int(head["action"])]
        bad = int(np.nan_to_num(figures[LEAVES.index("nonfinite")]).sum())
        record = StepRecord(
            step=step, time=time.time(), nonfinite=bad, optimizer=self.index, **head
        )
        there = ~np.isnan(figures[LEAVES.index("zeros")])
        writer.write_step(record, self.ids[there], *figures[:, there])


def install(session: Session, keras: ModuleType) -> KerasObserver | None:
    """Patch Keras for this process.

    Args:
        session: the run.
        keras: the imported module.

    Returns:
        The observer; None where the torch backend is observed as torch.
    """
    backend = keras.backend.backend()
    if backend not in ("tensorflow", "jax", "torch"):
        return None  # it cannot train
    observer = KerasObserver(session, keras)
    base = sys.modules["keras.src.optimizers.base_optimizer"].BaseOptimizer
    _patch_apply(base, observer)
    if backend != "jax":  # there it is a tracer of another trace
        for kind in (base, keras.optimizers.LossScaleOptimizer):
            _patch_scale_loss(kind, observer)
    _patch_make_train_function(keras.Model, observer)
    many = getattr(keras.optimizers, "MultiOptimizer", None)
    if many is not None:
        _patch_apply_of_many(many, observer)
    if session.plan.clip is not None:
        for kind in filter(None, (base, many)):
            _patch_build(kind, observer)
    if backend == "tensorflow":
        if session.plan.clip is not None:
            _patch_clip_by_global_norm(sys.modules["tensorflow"], session)
        _patch_tape(sys.modules["tensorflow"], observer)
    elif backend == "jax":
        _patch_value_and_grad(sys.modules["jax"], observer)
    return observer


def _patch_apply(base: Any, observer: KerasObserver) -> None:
    original = base.apply

    @functools.wraps(original)
    def apply(self: Any, grads: Any, trainable_variables: Any = None) -> Any:
        if observer.clip(self):
            return self.apply(grads, trainable_variables)
        grads = list(grads)
        observer.before_apply(self, grads, trainable_variables)
        return original(self, grads, trainable_variables)

    base.apply = apply


def _patch_apply_of_many(kind: Any, observer: KerasObserver) -> None:
    """Have a `MultiOptimizer` built, and its class changed to clip, before its `apply` begins."""
    original = kind.apply

    @functools.wraps(original)
    def apply(self: Any, grads: Any, trainable_variables: Any = None) -> Any:
        before = type(self)
        if not self.built and trainable_variables is not None:
            trainable_variables = list(trainable_variables)
            self.build(trainable_variables)
        if type(self) is not before:
            return self.apply(grads, trainable_variables)
        with observer.sharing():
            return original(self, grads, trainable_variables)

    kind.apply = apply


def _patch_make_train_function(kind: Any, observer: KerasObserver) -> None:
    original = kind.make_train_function

    @functools.wraps(original)
    def make_train_function(self: Any, force: bool = False) -> Any:
        made = original(self, force)
        observer.guarded("weights are not sampled", observer.watch_weights, self)
        return made

    kind.make_train_function = make_train_function


def _patch_scale_loss(kind: Any, observer: KerasObserver) -> None:
    original = kind.scale_loss

    @functools.wraps(original)
    def scale_loss(self: Any, loss: Any) -> Any:
        scaled = original(self, loss)
        observer.scaled(scaled, loss)
        return scaled

    kind.scale_loss = scale_loss


def _patch_build(kind: Any, observer: KerasObserver) -> None:
    original = kind.build

    @functools.wraps(original)
    def build(self: Any, variables: Any) -> Any:
        with observer.building(self):
            return original(self, variables)

    kind.build = build


def _patch_clip_by_global_norm(tf: Any, session: Session) -> None:
    """The one clipping function that is for gradients alone; the others clip losses too."""

    def clip_by_global_norm(
        t_list: Any, clip_norm: Any, use_norm: Any = None, name: str | None = None
    ) -> Any:
        session.mention("tf.clip_by_global_norm was replaced by --clip")
        return list(t_list), tf.linalg.global_norm(t_list) if use_norm is None else use_norm

    tf.clip_by_global_norm = clip_by_global_norm


def _patch_tape(tf: Any, observer: KerasObserver) -> None:
    original = tf.GradientTape.gradient

    @functools.wraps(original)
    def gradient(self: Any, target: Any, *args: Any, **kwargs: Any) -> Any:
        if getattr(target, "shape", None) == ():
            observer.loss = observer.unscaled(target)
        return original(self, target, *args, **kwargs)

    tf.GradientTape.gradient = gradient


def _patch_value_and_grad(jax: Any, observer: KerasObserver) -> None:
    original = jax.value_and_grad
    trainer = sys.modules["keras.src.backend.jax.trainer"].JAXTrainer

    @functools.wraps(original)
    def value_and_grad(fun: Any, *args: Any, **kwargs: Any) -> Any:
        function = original(fun, *args, **kwargs)
        scales = getattr(fun, "__func__", None) is trainer.compute_loss_and_updates
        has_aux = kwargs.get("has_aux", args[1] if len(args) > 1 else False)

        @functools.wraps(function)
        def noting(*inputs: Any, **more: Any) -> Any:
            found, grads = function(*inputs, **more)
            value = found[0] if has_aux else found
            # what Keras' own function returns may be scaled, and the loss itself stands aside
            observer.loss = found[1][0] if scales else value
            return found, grads

        return noting

    jax.value_and_grad = value_and_grad


def _described(variable: Any, optimizer: int, module: str) -> TensorInfo:
    return TensorInfo(
        name=str(getattr(variable, "path", variable.name)),
        shape=tuple(int(length) for length in variable.shape),
        dtype=str(getattr(variable.dtype, "name", variable.dtype)),
        module=module,
        optimizer=optimizer,
    )
