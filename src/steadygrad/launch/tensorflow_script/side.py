"""How a step's figures leave TensorFlow.

They pass through a ring of variables that a thread reads. Where TensorFlow runs graphs in
sessions, as version 1 did, a variable would have to be initialised by the script and would be
saved with its model: there the row is handed to Python from inside the graph.
"""

from __future__ import annotations

import functools
import math
import threading
from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from steadygrad.launch.track import CALL, MOST_CALLS, Track
from steadygrad.runlog.hidden import HiddenThread, stay_hidden

RING = 512
"""Steps that are kept until the thread has read them."""
POLL_SECONDS = 0.1

Made = TypeVar("Made")


class TensorFlowSide:
    """Figures leave a TensorFlow step through a ring of variables."""

    def number(self, value: object) -> tf.Tensor:
        """Any scalar as a 0-d array; NaN where it cannot be reached from here."""
        if not reached(value):
            value = math.nan  # of a function that was traced before
        return tf.reshape(tf.cast(tf.convert_to_tensor(value), tf.float64), [])

    def loss(self, value: object, variables: Sequence[object], beside: tf.Tensor) -> tf.Tensor:
        """The loss that was heard."""
        return self.number(math.nan if value is None else value)

    def head(self, batch: Sequence[tf.Tensor], calls: Sequence[tf.Tensor]) -> tf.Tensor:
        """The first numbers of a row."""
        rest = calls or [_gap(MOST_CALLS * len(CALL))]
        return tf.concat([_stacked(batch), *rest], 0)

    def body(
        self,
        step: Sequence[tf.Tensor],
        leaves: Sequence[tf.Tensor],
        places: Sequence[int],
        tensors: int,
    ) -> tf.Tensor:
        """The rest of a row."""
        gap = _gap(1)
        columns = [places.index(i) if i in places else len(places) for i in range(tensors)]
        full = [tf.gather(tf.concat([tf.cast(f, tf.float64), gap], 0), columns) for f in leaves]
        return tf.concat([_stacked(step), *full], 0)

    def when(self, kind: tf.Tensor, body: Callable[[], tf.Tensor], width: int) -> tf.Tensor:
        """``body()`` where a step is taken."""
        return tf.cond(kind != 0, body, lambda: _gap(width))

    def joined(self, head: tf.Tensor, body: tf.Tensor) -> tf.Tensor:
        """A whole row."""
        return tf.concat([head, body], 0)

    def ring(self, width: int) -> TensorFlowRing | None:
        """Where rows of this width wait."""
        if in_sessions():
            return None
        return made_apart(lambda: TensorFlowRing(width))

    def emit(self, track: Track, row: tf.Tensor) -> tf.Operation | None:
        """Hand over a row, or several behind each other.

        Returns:
            What a session has to run for that, if anything.
        """
        ring = track.ring
        if not isinstance(ring, TensorFlowRing):
            handed_over: tf.Operation = tf.numpy_function(track.push, [row], [])
            return handed_over
        replica = _replica()
        if replica is None:
            ring.put(row)
        else:
            replica.merge_call(functools.partial(_across, ring), args=(row,))
        if ring.reader is None:
            ring.start_reading(track.drain)
        return None

    def settle(self) -> None:
        """Reading a variable waits for what writes it."""


class TensorFlowRing:
    """The last `RING` rows, on the device.

    Args:
        width: numbers in a row.

    Attributes:
        reader: the thread that reads; None before the first row.
    """

    def __init__(self, width: int) -> None:
        self._rows = tf.Variable(tf.zeros([RING, width], tf.float64), trainable=False)
        self._count = tf.Variable(0, dtype=tf.int64, trainable=False)
        self._read = 0
        self._over = threading.Event()
        self.reader: HiddenThread | None = None

    def put(self, row: tf.Tensor) -> None:
        """Add a row, or several behind each other; becomes part of the code that is traced."""
        rows = tf.reshape(row, [-1, self._rows.shape[1]])
        many = int(rows.shape[0])
        places = (self._count + tf.range(many, dtype=tf.int64)) % RING
        written = self._rows.scatter_update(tf.IndexedSlices(rows, places))
        with tf.control_dependencies([written]):
            self._count.assign_add(many)

    def read(self) -> list[NDArray[np.float64]]:
        """The rows since the last call, those that were overwritten left out."""
        count = int(self._count.numpy())
        if count == self._read:
            return []
        first = max(self._read, count - RING)
        rows = self._rows.numpy()
        self._read = count
        return [rows[i % RING] for i in range(first, count)]

    def start_reading(self, drain: Callable[[], None]) -> None:
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


def made_apart(make: Callable[[], Made]) -> Made:
    """What holds variables, made in a new thread: that is inside of no trace, and of no strategy,
    which would mirror the variables."""
    made: list[Made] = []
    HiddenThread(lambda: made.append(make())).join()
    return made[0]


def in_sessions() -> bool:
    """Whether TensorFlow runs graphs in sessions, as version 1 did."""
    if not tf.compat.v1.executing_eagerly_outside_functions():
        return True
    graph = tf.compat.v1.get_default_graph()
    return not tf.executing_eagerly() and not graph.building_function


def _across(
    ring: TensorFlowRing, distribution: tf.distribute.Strategy, rows: Sequence[tf.Tensor]
) -> None:
    """All replicas have the same row, save for the loss, of which each has its part."""
    each = distribution.experimental_local_results(rows)
    loss = tf.add_n([row[:1] for row in each])
    ring.put(tf.concat([loss, each[0][1:]], 0))


def _replica() -> tf.distribute.ReplicaContext | None:
    """The replica whose code is being traced; None where there is but one."""
    if tf.distribute.get_strategy().num_replicas_in_sync == 1:
        return None
    return tf.distribute.get_replica_context()


def reached(value: object) -> bool:
    """Whether a value may be used in the code that runs, or is traced, now."""
    tensor = value.values if isinstance(value, tf.IndexedSlices) else value
    graph = None if hasattr(tensor, "numpy") else getattr(tensor, "graph", None)
    return graph is None or (not tf.executing_eagerly() and _reaches(graph))


def _reaches(graph: tf.Graph) -> bool:
    here = tf.compat.v1.get_default_graph()
    while here is not None and here is not graph:
        here = getattr(here, "outer_graph", None)
    return here is graph


def _gap(width: int) -> tf.Tensor:
    return tf.fill([width], tf.constant(math.nan, tf.float64))


def _stacked(figures: Sequence[tf.Tensor]) -> tf.Tensor:
    return tf.stack([tf.cast(figure, tf.float64) for figure in figures])
