"""Observing a Keras script on TensorFlow or JAX.

`BaseOptimizer.apply` is the one place that `fit` and loops of one's own pass. It is
traced there, so its figures are made part of the compiled step and leave it sideways:
on TensorFlow through a ring of variables that a thread reads, on JAX through a debug
callback. Unlike `steadygrad.keras.attach` this puts nothing into the optimizer: what
the script saves stays as it was. Keras on torch is observed as any torch loop.

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
from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from steadygrad.policies.stepping import Stepped, as_policy, measure, nonfinite_mode
from steadygrad.runlog.records import ACTIONS, StepRecord, TensorInfo
from steadygrad.stats import GradientStats

if TYPE_CHECKING:
    from steadygrad.launch.session import Session

RING = 512
"""Steps that TensorFlow keeps until the thread has read them."""
POLL_SECONDS = 0.1
DISTRIBUTED = "steps under a tf.distribute strategy are not observed"
HEAD = ("loss", "lr", "norm", "threshold", "coef", "cosine", "action")
LEAVES = ("norms", "max_abs", "nonfinite", "zeros")


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
        self.loss: Any = None

    @functools.cached_property
    def backend(self) -> Any:
        """Made at the first step: a script configures its devices before anything uses them."""
        name = self._keras.backend.backend()
        return TensorFlowSide() if name == "tensorflow" else JaxSide()

    @property
    def steps(self) -> int:
        """Steps seen so far."""
        return sum(track.steps for track in self._all)

    def before_apply(self, optimizer: Any, gradients: Sequence[Any], variables: Any) -> None:
        """An optimizer's `apply` is called, or traced, with these gradients."""
        if variables is None:
            variables = optimizer._trainable_variables
        try:
            if self._clips(optimizer):
                return  # its hook tells
            pairs = zip(gradients, variables, strict=True)
            present = [(i, g) for i, (g, _) in enumerate(pairs) if g is not None]
            if self.backend.distributed():
                self._session.mention(DISTRIBUTED)
            elif present:
                self._observe(self._track(optimizer, variables), present, optimizer)
        except Exception as error:
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
        from steadygrad.keras.attach import unwrap
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
        policy = as_policy(self._session.plan.clip or "none", type(inner).__name__)
        mode = self._session.plan.on_nonfinite
        if mode == "raise":
            self._session.mention(
                "--on-nonfinite raise: compiled code cannot raise; steps were skipped"
            )
            mode = "skip"
        hook = Hook(policy, nonfinite_mode(mode, policy, ""))
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

    def _tell(self, optimizer: Any, done: Stepped, variables: Sequence[Any]) -> None:
        """A clipped optimizer's step is taken, or traced."""
        try:
            self._tell_of(optimizer, done, variables)
        except Exception as error:
            self._session.trouble("a clipped Keras step is not recorded", error)

    def _tell_of(self, optimizer: Any, done: Stepped, variables: Sequence[Any]) -> None:
        if self.backend.distributed():
            self._session.mention(DISTRIBUTED)
            return
        track = self._track(optimizer, optimizer._trainable_variables)
        places = [optimizer._get_variable_index(variable) for variable in variables]
        with self.backend.engine.scope():
            outcome = [done.threshold, done.coef, done.cosine, done.action]
            self._emit(track, done.stats, places, optimizer, outcome)

    def finish(self) -> None:
        """Read what the device still holds."""
        if self._all:
            self.backend.settle()
        for track in self._all:
            if track.ring is not None:
                track.ring.stop_reading()
            track.drain()

    def _track(self, optimizer: Any, variables: Sequence[Any]) -> Track:
        track = self._tracks.get(optimizer)
        if track is None or len(track.infos) < len(variables):
            infos = [_described(v, len(self._all)) for v in variables]
            track = Track(self._session, infos, len(self._all))
            track.ring = self.backend.ring(len(HEAD) + len(LEAVES) * len(infos))
            self._tracks[optimizer] = track
            self._all.append(track)
            self._announce(type(optimizer).__name__)
        return track

    def _announce(self, kind: str) -> None:
        writer = self._session.writer()
        if writer is not None:
            self._kinds.append({"class": kind, "index": len(self._kinds)})
            writer.update_info(
                framework="keras",
                backend=self._keras.backend.backend(),
                versions={"keras": self._keras.__version__, "numpy": np.__version__},
                optimizers=self._kinds,
            )

    def _observe(self, track: Track, present: list[tuple[int, Any]], optimizer: Any) -> None:
        engine = self.backend.engine
        leaves = [self.backend.leaf(gradient) for _, gradient in present]
        with engine.scope():
            names = tuple(track.infos[i].name for i, _ in present)
            stats = measure(engine, leaves, names, 2.0, full=True)
            one = stats.total_norm * 0 + 1
            self._emit(
                track,
                stats,
                [i for i, _ in present],
                optimizer,
                [one * math.inf, one, one, one * 0],
            )

    def _emit(
        self,
        track: Track,
        stats: GradientStats,
        places: list[int],
        optimizer: Any,
        outcome: list[Any],
    ) -> None:
        """Send one step's row on its way; call it inside the engine's scope."""
        figures = [getattr(stats, name) for name in LEAVES]
        rate = self.backend.number(getattr(optimizer, "learning_rate", math.nan))
        head = [self._loss(), rate, stats.total_norm, *outcome]
        self.backend.emit(track, self.backend.row(head, figures, places, len(track.infos)))

    def _loss(self) -> Any:
        loss, self.loss = self.loss, None
        return self.backend.number(math.nan if loss is None else loss)


class Track:
    """One optimizer's steps on their way into the run file."""

    def __init__(self, session: Session, infos: list[TensorInfo], index: int) -> None:
        self.infos, self.index, self.steps = infos, index, 0
        self.ring: Any = None
        self._session = session
        self._ids: Any = None
        self._rows: deque[Any] = deque()
        self._lock = threading.Lock()

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
        writer = self._session.writer()
        step, self.steps = self.steps, self.steps + 1
        if writer is None:
            return
        if self._ids is None:
            self._ids = np.asarray(writer.add_tensors(self.infos), np.int64)
        head = dict(zip(HEAD, row[: len(HEAD)].tolist(), strict=True))
        head["action"] = ACTIONS[int(head["action"])]
        figures = row[len(HEAD) :].reshape(len(LEAVES), len(self.infos))
        bad = int(np.nan_to_num(figures[LEAVES.index("nonfinite")]).sum())
        record = StepRecord(
            step=step, time=time.time(), nonfinite=bad, optimizer=self.index, **head
        )
        there = ~np.isnan(figures[LEAVES.index("zeros")])
        writer.write_step(record, self._ids[there], *figures[:, there])


class TensorFlowSide:
    """Figures leave a TensorFlow step through a ring of variables."""

    def __init__(self) -> None:
        import tensorflow as tf

        from steadygrad.tensorflow.engine import TensorFlowEngine

        self.tf, self.engine = tf, TensorFlowEngine()

    def distributed(self) -> bool:
        return bool(self.tf.distribute.has_strategy())

    def leaf(self, gradient: Any) -> Any:
        from steadygrad.tensorflow.engine import merged

        return getattr(merged(gradient), "values", None) if self._sparse(gradient) else gradient

    def _sparse(self, gradient: Any) -> bool:
        return isinstance(gradient, self.tf.IndexedSlices)

    def number(self, value: Any) -> Any:
        graph = getattr(value, "graph", None) if not self.tf.executing_eagerly() else None
        if graph is not None and not self._reaches(graph):
            value = math.nan  # of a function that was traced before
        return self.tf.reshape(self.tf.cast(self.tf.convert_to_tensor(value), self.tf.float64), [])

    def _reaches(self, graph: Any) -> bool:
        here = self.tf.compat.v1.get_default_graph()
        while here is not None and here is not graph:
            here = getattr(here, "outer_graph", None)
        return here is graph

    def row(self, head: list[Any], figures: list[Any], places: list[int], count: int) -> Any:
        tf = self.tf
        gap = tf.constant([math.nan], tf.float64)
        columns = [places.index(i) if i in places else len(places) for i in range(count)]
        full = [tf.gather(tf.concat([tf.cast(f, tf.float64), gap], 0), columns) for f in figures]
        return tf.concat([tf.stack([tf.cast(x, tf.float64) for x in head]), *full], 0)

    def ring(self, width: int) -> TensorFlowRing:
        with self.tf.init_scope():
            return TensorFlowRing(self.tf, width)

    def emit(self, track: Track, row: Any) -> None:
        track.ring.put(row)
        if track.ring.reader is None:
            track.ring.start_reading(track.drain)

    def settle(self) -> None:
        """Reading a variable waits for what writes it."""


class TensorFlowRing:
    """The last `RING` rows, on the device."""

    def __init__(self, tf: Any, width: int) -> None:
        self._tf = tf
        self._rows = tf.Variable(tf.zeros([RING, width], tf.float64), trainable=False)
        self._count = tf.Variable(0, dtype=tf.int64, trainable=False)
        self._read = 0
        self._over = threading.Event()
        self.reader: threading.Thread | None = None

    def put(self, row: Any) -> None:
        """Add a row; becomes part of the function that is being traced."""
        tf = self._tf
        place = tf.reshape(self._count % RING, [1])
        written = self._rows.scatter_update(tf.IndexedSlices(row[None], place))
        with tf.control_dependencies([written]):
            self._count.assign_add(1)

    def read(self) -> list[Any]:
        """The rows since the last call, those that were overwritten left out."""
        count = int(self._count.numpy())
        if count == self._read:
            return []
        first = max(self._read, count - RING)
        rows = self._rows.numpy()
        self._read = count
        return [rows[i % RING] for i in range(first, count)]

    def start_reading(self, drain: Any) -> None:
        """Read from a thread: nothing else runs between the steps of a compiled loop."""

        def poll() -> None:
            while not self._over.wait(POLL_SECONDS):
                drain()

        self.reader = threading.Thread(target=poll, name="steadygrad-keras", daemon=True)
        self.reader.start()

    def stop_reading(self) -> None:
        """End the thread: none may use the device while the interpreter goes down."""
        self._over.set()
        if self.reader is not None:
            self.reader.join()


class JaxSide:
    """Figures leave a JAX step through a debug callback."""

    def __init__(self) -> None:
        import jax

        from steadygrad.jax.engine import JaxEngine

        self.jax, self.engine = jax, JaxEngine()

    def distributed(self) -> bool:
        return False

    def leaf(self, gradient: Any) -> Any:
        return gradient

    def number(self, value: Any) -> Any:
        jnp = self.jax.numpy
        value = getattr(value, "value", value)  # a Keras variable
        return jnp.asarray(value).astype("float32").reshape(())

    def row(self, head: list[Any], figures: list[Any], places: list[int], count: int) -> Any:
        jnp = self.jax.numpy
        empty = jnp.full((count,), math.nan, "float32")
        where = jnp.asarray(places)
        full = [empty.at[where].set(figure.astype("float32")) for figure in figures]
        return jnp.concatenate([jnp.stack([x.astype("float32") for x in head]), *full])

    def ring(self, width: int) -> None:
        return None

    def emit(self, track: Track, row: Any) -> None:
        self.jax.debug.callback(track.push, row, ordered=False)

    def settle(self) -> None:
        """Wait for the callbacks that are under way."""
        self.jax.effects_barrier()


def install(session: Session, keras: ModuleType) -> KerasObserver | None:
    """Patch Keras for this process.

    Args:
        session: the run.
        keras: the imported module.

    Returns:
        The observer; None where the torch backend is observed as torch.
    """
    if keras.backend.backend() not in ("tensorflow", "jax"):
        if session.plan.clip is not None:
            session.mention(
                f"--clip does not reach Keras optimizers on {keras.backend.backend()}; type "
                f"steadygrad.keras.attach(optimizer, clip={session.plan.clip!r}) in the script"
            )
        return None
    observer = KerasObserver(session, keras)
    base = sys.modules["keras.src.optimizers.base_optimizer"].BaseOptimizer
    _patch_apply(base, observer)
    if session.plan.clip is not None:
        for kind in (base, getattr(keras.optimizers, "MultiOptimizer", None)):
            if kind is not None:
                _patch_build(kind, observer)
        if keras.backend.backend() == "tensorflow":
            _patch_clip_by_global_norm(sys.modules["tensorflow"], session)
    if keras.backend.backend() == "tensorflow":
        _patch_tape(sys.modules["tensorflow"], observer)
    else:
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
            observer.loss = target
        return original(self, target, *args, **kwargs)

    tf.GradientTape.gradient = gradient


def _patch_value_and_grad(jax: Any, observer: KerasObserver) -> None:
    original = jax.value_and_grad

    @functools.wraps(original)
    def value_and_grad(*args: Any, **kwargs: Any) -> Any:
        function = original(*args, **kwargs)
        if not kwargs.get("has_aux"):
            return function

        def noting(*inputs: Any, **more: Any) -> Any:
            (value, aux), grads = function(*inputs, **more)
            # Keras' trainer puts the unscaled loss first
            observer.loss = aux[0] if isinstance(aux, tuple) and aux else value
            return (value, aux), grads

        return noting

    jax.value_and_grad = value_and_grad


def _described(variable: Any, optimizer: int) -> TensorInfo:
    return TensorInfo(
        name=str(getattr(variable, "path", variable.name)),
        shape=tuple(int(length) for length in variable.shape),
        dtype=str(getattr(variable.dtype, "name", variable.dtype)),
        optimizer=optimizer,
    )
