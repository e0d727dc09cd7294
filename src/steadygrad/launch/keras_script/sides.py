"""How one step's figures leave a Keras optimizer, on each backend.

On TensorFlow they pass through a ring of variables that a thread reads, on JAX through a
debug callback; on torch, which compiles nothing, they are written at once.
"""

from __future__ import annotations

import functools
import math
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from steadygrad.runlog.hidden import HiddenThread, stay_hidden

if TYPE_CHECKING:
    from steadygrad.launch.keras_script.observer import Track
    from steadygrad.launch.session import Session

RING = 512
"""Steps that TensorFlow keeps until the thread has read them."""
POLL_SECONDS = 0.1


class TensorFlowSide:
    """Figures leave a TensorFlow step through a ring of variables."""

    def __init__(self) -> None:
        import tensorflow as tf

        self.tf = tf

    def number(self, value: Any) -> Any:
        graph = getattr(value, "graph", None) if not self.tf.executing_eagerly() else None
        if graph is not None and not self._reaches(graph):
            value = math.nan  # of a function that was traced before
        return self.tf.reshape(self.tf.cast(self.tf.convert_to_tensor(value), self.tf.float64), [])

    def loss(self, value: Any, variables: Sequence[Any], beside: Any) -> Any:
        return self.number(math.nan if value is None else value)

    def _replica(self) -> Any:
        """The replica whose code is being traced; None where there is but one."""
        if self.tf.distribute.get_strategy().num_replicas_in_sync == 1:
            return None
        return self.tf.distribute.get_replica_context()

    def _reaches(self, graph: Any) -> bool:
        here = self.tf.compat.v1.get_default_graph()
        while here is not None and here is not graph:
            here = getattr(here, "outer_graph", None)
        return here is graph

    def body(self, head: list[Any], figures: list[Any], places: list[int], count: int) -> Any:
        tf = self.tf
        gap = tf.constant([math.nan], tf.float64)
        columns = [places.index(i) if i in places else len(places) for i in range(count)]
        full = [tf.gather(tf.concat([tf.cast(f, tf.float64), gap], 0), columns) for f in figures]
        return tf.concat([tf.stack([tf.cast(x, tf.float64) for x in head]), *full], 0)

    def when(self, kind: Any, body: Callable[[], Any], width: int) -> Any:
        """``body()`` where a step is taken; what it computes is spared elsewhere."""
        return self.tf.cond(kind != 0, body, lambda: self._gap(width))

    def _gap(self, width: int) -> Any:
        return self.tf.fill([width], self.tf.constant(math.nan, self.tf.float64))

    def joined(self, head: list[Any], body: Any) -> Any:
        tf = self.tf
        return tf.concat([tf.stack([tf.cast(x, tf.float64) for x in head]), body], 0)

    def ring(self, width: int) -> TensorFlowRing:
        made: list[TensorFlowRing] = []
        # a new thread is inside of no trace and of no strategy, which would mirror the variables
        HiddenThread(lambda: made.append(TensorFlowRing(self.tf, width))).join()
        return made[0]

    def emit(self, track: Track, row: Any) -> None:
        replica = self._replica()
        if replica is None:
            track.ring.put(row)
        else:
            replica.merge_call(functools.partial(self._across, track), args=(row,))
        if track.ring.reader is None:
            track.ring.start_reading(track.drain)

    def _across(self, track: Track, distribution: Any, rows: Any) -> None:
        """All replicas have the same row, save for the loss, of which each has its part."""
        each = distribution.experimental_local_results(rows)
        loss = self.tf.add_n([row[:1] for row in each])
        track.ring.put(self.tf.concat([loss, each[0][1:]], 0))

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
        self.reader: HiddenThread | None = None

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
                stay_hidden()

        self.reader = HiddenThread(poll)

    def stop_reading(self) -> None:
        """End the thread: none may use the device while the interpreter goes down."""
        self._over.set()
        if self.reader is not None:
            self.reader.join()


class JaxSide:
    """Figures leave a JAX step through a debug callback."""

    def __init__(self) -> None:
        import jax

        self.jax = jax

    def number(self, value: Any) -> Any:
        jnp = self.jax.numpy
        value = getattr(value, "value", value)  # a Keras variable
        return jnp.asarray(value).astype("float32").reshape(())

    def loss(self, value: Any, variables: Sequence[Any], beside: Any) -> Any:
        """What was noted; NaN where ``beside``, a tensor of the step, is of a trace without it."""
        reaches = value is not None and self._reaches(value, beside)
        return self.number(value if reaches else math.nan)

    def _reaches(self, value: Any, beside: Any) -> bool:
        of, here = (getattr(one, "_trace", None) for one in (value, beside))
        if of is None or (here is not None and not hasattr(here, "parent_trace")):
            return True  # older versions do not tell which trace is inside of which
        while here is not None and here is not of:
            here = getattr(here, "parent_trace", None)
        return here is of

    def body(self, head: list[Any], figures: list[Any], places: list[int], count: int) -> Any:
        jnp = self.jax.numpy
        empty = jnp.full((count,), math.nan, "float32")
        where = jnp.asarray(places)
        full = [empty.at[where].set(figure.astype("float32")) for figure in figures]
        return jnp.concatenate([jnp.stack([x.astype("float32") for x in head]), *full])

    def when(self, kind: Any, body: Callable[[], Any], width: int) -> Any:
        """``body()`` where a step is taken; what it computes is spared elsewhere."""
        gap = functools.partial(self.jax.numpy.full, (width,), math.nan, "float32")
        return self.jax.lax.cond(kind != 0, body, gap)

    def joined(self, head: list[Any], body: Any) -> Any:
        jnp = self.jax.numpy
        return jnp.concatenate([jnp.stack([x.astype("float32") for x in head]), body])

    def ring(self, width: int) -> None:
        return None

    def emit(self, track: Track, row: Any) -> None:
        self.jax.debug.callback(track.push, row, ordered=False)

    def settle(self) -> None:
        """Wait for the callbacks that are under way."""
        self.jax.effects_barrier()


class TorchSide:
    """Figures of a torch step are there at once.

    Args:
        session: the run, whose own observer of torch hears the losses.
    """

    def __init__(self, session: Session) -> None:
        self._session = session

    def number(self, value: Any) -> float:
        value = getattr(value, "value", value)  # a Keras variable
        return float(value)

    def loss(self, value: Any, variables: Sequence[Any], beside: Any) -> float:
        """What was scaled, or what the torch observer saw backward called on."""
        heard = math.nan
        for observer in self._session.observers:
            if hasattr(observer, "kept_elsewhere"):
                heard = observer.kept_elsewhere([v.value for v in variables])
        return self.number(heard if value is None else value)

    def body(self, head: list[Any], figures: list[Any], places: list[int], count: int) -> Any:
        rows = np.full((len(figures), count), math.nan)
        for row, figure in zip(rows, figures, strict=True):
            row[places] = figure.detach().cpu().numpy()
        return np.concatenate([[float(x) for x in head], rows.ravel()])

    def when(self, kind: Any, body: Callable[[], Any], width: int) -> Any:
        return body() if kind else np.full(width, math.nan)

    def joined(self, head: list[Any], body: Any) -> Any:
        return np.concatenate([[float(x) for x in head], body])

    def ring(self, width: int) -> None:
        return None

    def emit(self, track: Track, row: Any) -> None:
        track.push(row)

    def settle(self) -> None:
        """Nothing is under way."""
