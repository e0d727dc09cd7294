"""RunWriter: what a training hands its steps to.

Handing over copies four short arrays and appends them to a queue; everything else
(quantising, compressing, SQLite, waiting for a disk) happens in a hidden thread. No signal
handler is installed, because trainers compose the ones they find: a batch is committed
every 200 to 800 ms instead, so that whatever ends the process costs less than a second of steps.
"""

from __future__ import annotations

import os
import sqlite3
import sys
import threading
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

from steadygrad.errors import RunFileError
from steadygrad.runlog.continuing import facts_of_start
from steadygrad.runlog.earlier import Earlier
from steadygrad.runlog.facts import basic_facts, without_secrets
from steadygrad.runlog.info import RunInfo
from steadygrad.runlog.items import (
    EventItem,
    Handed,
    Head,
    InfoItem,
    Item,
    SampleItem,
    SealedStep,
    StepItem,
    Tap,
    TapItem,
    TensorsItem,
    opened,
)
from steadygrad.runlog.notice import warn
from steadygrad.runlog.pump import Pump, ShortWay, bytes_of_step
from steadygrad.runlog.records import StepRecord, TensorInfo
from steadygrad.runlog.schema import is_run_file
from steadygrad.runlog.shortfall import STOPPED
from steadygrad.runlog.stopping import TrainingStopped
from steadygrad.runlog.store import Store, is_being_written, remove_side_files
from steadygrad.runlog.thinning import LANDMARKS
from steadygrad.typing import internal
from steadygrad.vocabulary import GAP, NAN_LOSS

COMMIT_SECONDS = 0.2
RARELY_SECONDS = 0.8  # at least so often, where a commit is dear and nobody listens
NETWORK_COMMIT_SECONDS = 0.5  # there a commit waits for the server's disk
CHECKPOINT_SECONDS = 2.0
SINK_SECONDS = 20.0
"""How long an exit waits for all sinks together, as long as they work."""
CLOSE_SECONDS = 35.0
"""How long an exit waits for everything, should the disk hang."""


class RunWriter:
    """Records a run into one SQLite file, off the hot path.

    After construction nothing here raises into the training: where the disk is full or
    the folder read-only, one `RecordingWarning` is given and recording ends.

    Args:
        path: the file to write; folders on the way are made.
        info: facts about the run as JSON values (`update_info` adds more).
        force: replace an earlier run file at ``path``.
        record_arguments: keep ``command`` as it is; by default only what is harmless by its form.
        goes_on: add to the file of an earlier start of the job; its steps are numbered on.

    Raises:
        RunFileError: a file stands at ``path`` and neither ``force`` nor ``goes_on`` is given, or
            it is not a run file.

    Example:
        >>> import tempfile
        >>> from steadygrad.runlog import RunWriter, StepRecord, TensorInfo, open_run
        >>> path = tempfile.mkdtemp() + "/run.db"
        >>> with RunWriter(path, info={"seed": 1}) as writer:
        ...     ids = writer.add_tensors([TensorInfo("w", (2,))])
        ...     writer.write_step(StepRecord(0, norm=5.0), ids, [5.0], [4.0], [0], [0])
        >>> open_run(path).steps.norm
        array([5.])
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        info: Mapping[str, object] | None = None,
        force: bool = False,
        record_arguments: bool = False,
        goes_on: bool = False,
    ) -> None:
        self._record_arguments = record_arguments
        self.path = Path(path).absolute()
        self._nan_losses: set[int] = set()
        self._lock = threading.Lock()
        self._recorder = _Recorder(self.path, force, goes_on)
        store = self._recorder.store
        self._tensors = 0 if store is None else len(store.tensors)
        self._earlier = None if store is None or not store.next_step else Earlier(store)
        self._pump = self._recorder.pump
        self._close = weakref.finalize(self, self._recorder.close)
        _close_with_worker(self._recorder)
        self.update_info(**{**basic_facts(), **facts_of_start(), **(info or {})})
        if self._earlier is not None:
            self.update_info(**self._earlier.facts)

    @property
    def info(self) -> RunInfo:
        """The facts about the run so far; a copy."""
        return cast("RunInfo", dict(self._recorder.info_given))

    @property
    def overhead_seconds(self) -> float:
        """Seconds that recording has cost the training thread; callers add their own."""
        return self._recorder.overhead

    @overhead_seconds.setter
    def overhead_seconds(self, seconds: float) -> None:
        self._recorder.overhead = seconds

    @property
    def recording(self) -> bool:
        """Whether steps still reach the file."""
        return self._recorder.store is not None and self._pump.usable

    def add_sink(self, sink: Tap) -> None:
        """Send every step to a logger too, from here on, off the hot path.

        Args:
            sink: from `steadygrad.sinks.open_sink`; one that fails or hangs costs a warning.
        """
        self._put(TapItem(sink), 0)

    def add_tensors(self, tensors: Sequence[TensorInfo]) -> list[int]:
        """Make tensors known to the file, at any time.

        Args:
            tensors: what is to be measured, in the order of the file's columns.

        Returns:
            Their numbers, for `write_step` and `write_sample`.
        """
        if self._earlier is not None:
            earlier_ids = self._earlier.ids(tensors)
            if earlier_ids:
                return earlier_ids
        with self._lock:
            first = self._tensors
            self._tensors += len(tensors)
        self._put(TensorsItem(first, tuple(tensors)), 300 * len(tensors))
        return list(range(first, first + len(tensors)))

    def write_step(
        self,
        record: StepRecord,
        tensor_ids: Sequence[int] | NDArray[np.int64],
        norms: ArrayLike,
        max_abs: ArrayLike,
        nonfinite: ArrayLike,
        zeros: ArrayLike,
    ) -> None:
        """Record one optimizer step; the arrays are copied and may be used again.

        Args:
            record: the step.
            tensor_ids: numbers from `add_tensors`; an int64 array is quickest.
            norms: norm of each of these tensors' gradients, shape ``[tensors]``.
            max_abs: largest finite magnitude in each, shape ``[tensors]``.
            nonfinite: number of NaN and inf elements in each, shape ``[tensors]``.
            zeros: number of zero elements in each, shape ``[tensors]``.
        """
        began = time.perf_counter()
        try:
            figures = np.array((norms, max_abs, nonfinite, zeros), np.float64)
            item = StepItem(record, time.time(), np.array(tensor_ids, np.int64), *figures)
        except (TypeError, ValueError) as error:
            self._put(error, 0)  # the thread ends the recording with it
            return
        self.hand_over(item)
        self._recorder.overhead += time.perf_counter() - began

    @internal
    def hand_over(self, item: StepItem) -> None:
        """`write_step` for a caller that keeps its own account of time.

        Args:
            item: the step, in arrays that nobody writes to any more.
        """
        record = item.record
        if self._earlier is not None:
            number = self._numbered(record.step, record.optimizer)
            record = replace(record, step=number)
            item = item._replace(record=record)
        if record.loss_told and record.loss != record.loss:
            self._note_nan_loss(record)
        if not self._pump.put(item, bytes_of_step(len(item.tensor_ids))):
            self._recorder.missed(item.record)

    @internal
    def hand_over_sealed(self, step: SealedStep, size: int) -> bool:
        """`hand_over` for a step that the thread opens, the shortest way to it.

        Args:
            step: the step.
            size: of it, as `bytes_of_step` has it.

        Returns:
            False where it has to be handed over open: steps are numbered anew.
        """
        if self._earlier is not None:
            return False
        if not self._pump.put(step, size):
            self._recorder.missed(step.opened().record)
        return True

    @internal
    def short_way(self, size: int) -> ShortWay | None:
        """`hand_over_sealed` for C; None where steps have to be handed over open."""
        return None if self._earlier is not None else self._pump.short_way(size)

    def _note_nan_loss(self, record: StepRecord) -> None:
        if record.optimizer not in self._nan_losses:
            self._nan_losses.add(record.optimizer)
            data = {"optimizer": record.optimizer}
            self._put(EventItem(NAN_LOSS, data, record.step, time.time()), 1000)

    def _numbered(self, step: int, optimizer: int = 0) -> int:
        """A step of this start, as the file numbers it."""
        assert self._earlier is not None
        for item in self._earlier.items_of_start(step, optimizer):
            self._put(item, 1000)
        return step + self._earlier.offset

    def write_sample(
        self,
        name: str,
        step: int,
        tensor_ids: Sequence[int] | NDArray[np.int64],
        values: ArrayLike,
    ) -> None:
        """Record a figure per tensor beyond the gradients', e.g. ``weight_norm``.

        Args:
            name: what was measured.
            step: the step it belongs to.
            tensor_ids: numbers from `add_tensors`.
            values: one float a tensor, kept exactly.
        """
        ids, floats = np.array(tensor_ids, np.int64), np.array(values, np.float64)
        number = int(step) if self._earlier is None else self._numbered(int(step))
        self._put(SampleItem(name, number, ids, floats), 500 + 2 * floats.nbytes)

    def write_event(self, kind: str, data: Mapping[str, object], step: int | None = None) -> None:
        """Record something that happened once.

        Args:
            kind: e.g. ``"script_clip"``, ``"nan_origin"``, ``"alert"``.
            data: JSON values.
            step: the step it belongs to, if any.
        """
        if self._earlier is not None:
            step = None if step is None else self._numbered(step)
            data = self._earlier.numbered(data)
        self._put(EventItem(kind, dict(data), step, time.time()), 1000)

    def update_info(self, **values: object) -> None:
        """Add or replace facts about the run; values become JSON.

        Args:
            values: the facts; of ``command`` only arguments harmless by their form are kept.
        """
        if "command" in values and not self._record_arguments:
            values["command"] = without_secrets(cast("Sequence[object]", values["command"]))
        if "versions" in values:  # of two libraries in one script, each tells its own
            versions = cast("dict[str, str]", self._recorder.info_given.get("versions", {}))
            values["versions"] = {**versions, **cast("dict[str, str]", values["versions"])}
        self._recorder.info_given.update(values)
        self._put(InfoItem(values), 1000)

    @property
    def steps(self) -> int:
        """Steps so far, as far as the thread has come: all of them after `flush`."""
        return self._recorder.steps_seen

    @property
    def stop_reason(self) -> str:
        """Why the training is to end; empty as long as nobody has asked for it."""
        return self._recorder.stop_reason

    @property
    def stopping(self) -> tuple[tuple[object, str], ...]:
        """Owner and attribute in which there is nothing as long as `stop_if_asked` does nothing."""
        return ((self._recorder, "stop_reason"),)

    def ask_to_stop(self, reason: str, step: int | None = None) -> None:
        """Have the training end after the step under way, and say so in the file.

        Handles raise `TrainingStopped`; trainers' callbacks end the training as the trainer does.

        Args:
            reason: what was found.
            step: where, if at a step.
        """
        self._recorder.ask_to_stop(reason, step)

    def stop_if_asked(self) -> None:
        """Called between two steps, in the thread that trains.

        Raises:
            TrainingStopped: somebody has asked for it.
        """
        if self._recorder.stop_reason:
            raise TrainingStopped(self._recorder.stop_reason)

    def flush(self, timeout: float = 10.0) -> bool:
        """Wait until all that was handed over is committed.

        Args:
            timeout: most seconds to wait.

        Returns:
            Whether everything is in the file.
        """
        return self._pump.flush(timeout) and self.recording

    @internal
    def stay_open_at_exit(self) -> None:
        """Have the interpreter's end not close the file: the caller does, after other exits."""
        self._close.atexit = False

    @internal
    def leave_by(self, leave: Callable[[], None]) -> None:
        """Have a process that ends call this in place of `close`, which it must then do itself.

        Args:
            leave: adds last facts and closes; a second call does nothing.
        """
        self._recorder.leave = leave

    def close(self) -> None:
        """Commit everything and leave one self-contained file; called at exit by itself."""
        # a finalizer that is called in the interpreter's last moments does nothing any more
        if self._close.detach() is not None:
            self._recorder.close()

    def __enter__(self) -> RunWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is not None and "exit" not in self._recorder.info_given:
            self.update_info(exit=kind.__name__)
        self.close()

    def _put(self, item: Item | TapItem | Exception, size: int) -> None:
        self._pump.put(item, size)


class _Recorder:
    """The part that the thread keeps alive, so that a dropped `RunWriter` is closed."""

    def __init__(self, path: Path, force: bool, goes_on: bool) -> None:
        self.path = path
        self.overhead = 0.0
        self.stop_reason = ""
        self.leave: Callable[[], None] = self.close
        self.info_given: dict[str, object] = {}
        self._tensors: list[TensorInfo] = []
        self._taps: list[Tap] = []
        self._late: list[EventItem] = []
        self._missed: list[StepRecord] = []
        self._missed_count = 0
        self.steps_seen = 0
        self._stopped: tuple[Store, str] | None = None
        self._began = self._checkpointed = time.monotonic()
        self.store = self._create(force, goes_on)
        if self.store is not None:
            self._tensors += self.store.tensors
            self.steps_seen = self.store.committed_rows
        network = self.store is not None and self.store.mode != "WAL"
        self.pump: Pump[Handed] = Pump(
            self._consume,
            self._finish,
            self._end_file,
            interval=NETWORK_COMMIT_SECONDS if network else COMMIT_SECONDS,
            longest=RARELY_SECONDS,
        )

    def _create(self, force: bool, goes_on: bool) -> Store | None:
        try:
            if not goes_on:
                _claim(self.path, force)
            return Store(self.path, goes_on=goes_on)
        except RunFileError:
            raise
        except (OSError, sqlite3.Error, ValueError, TypeError) as error:
            self._warn(error)
            return None

    def missed(self, record: StepRecord) -> None:
        """Count a step that found no room in the queue."""
        self.steps_seen += 1
        if self.pump.usable:
            self._missed_count += 1
            self._missed = [*self._missed[:1], record]

    def _consume(self, batch: list[Handed]) -> None:
        listened = bool(self._taps) or any(type(item) is TapItem for item in batch)
        if listened:
            batch = opened(batch)
        items = _for_file(batch) + self._take_gap()
        self.steps_seen += sum(isinstance(item, (SealedStep, StepItem)) for item in items)
        try:
            self._raise_first(batch)
            self._record(items)
        except Exception as error:  # whatever it is, the sinks still hear of the steps
            self._end_file(error)
        if listened:
            self._tell_taps(batch, cast("list[Item]", items))

    @staticmethod
    def _raise_first(batch: list[Handed]) -> None:
        for item in batch:
            if isinstance(item, Exception):
                raise item

    def _record(self, items: list[Item | SealedStep]) -> None:
        if self.store is None:
            return
        if items:
            self.store.write(items)
        if time.monotonic() - self._checkpointed > CHECKPOINT_SECONDS:
            self.store.write([InfoItem(self._running_facts())])
            self.store.checkpoint()
            self._checkpointed = time.monotonic()

    def _tell_taps(self, batch: list[Handed], items: list[Item]) -> None:
        if items:
            for tap in self._taps:
                tap.feed(items)
        for place, item in enumerate(batch):
            if isinstance(item, TensorsItem):
                self._tensors += item.tensors
            elif isinstance(item, TapItem):
                item.tap.begin(self._head())
                item.tap.feed(cast("list[Item]", _for_file(batch[place + 1 :])))
                self._taps.append(item.tap)
                self.pump.longest = 0.0

    def _head(self) -> Head:
        def write_event(kind: str, data: Mapping[str, object], step: int | None = None) -> None:
            event = EventItem(kind, data, step, time.time())
            if not self.pump.put(event, 1000):  # the run is ending
                self._late.append(event)

        path = None if self.store is None else self.path
        tensors = tuple(self._tensors)
        info = cast("RunInfo", dict(self.info_given))
        return Head(path, info, tensors, write_event, self.leave, self.ask_to_stop)

    def ask_to_stop(self, reason: str, step: int | None) -> None:
        """As `RunWriter.ask_to_stop`; the first reason stays."""
        if self.stop_reason:
            return
        facts: dict[str, object] = {"exit": "stopped", "stopped_by": reason}
        self.info_given.update(facts)
        self.pump.put(InfoItem(facts), 1000)
        self.pump.put(EventItem("stop", {"reason": reason}, step, time.time()), 1000)
        self.stop_reason = reason

    def _take_gap(self) -> list[Item]:
        count, missed = self._missed_count, self._missed
        if not count:
            return []
        self._missed_count, self._missed = 0, []
        data: dict[str, object] = {
            "steps": count,
            "first_step": missed[0].step,
            "last_step": missed[-1].step,
        }
        return [EventItem(GAP, data, missed[0].step, time.time())]

    def _running_facts(self) -> dict[str, object]:
        facts: dict[str, object] = {
            "overhead_seconds": self.overhead,
            "wall_seconds": time.monotonic() - self._began,
        }
        if self.store is not None:
            facts[LANDMARKS] = self.store.landmarks
        return {key: value for key, value in facts.items() if key not in self.info_given}

    def _finish(self) -> None:
        # sinks first: an alert may still want a line in the record
        deadline = time.monotonic() + SINK_SECONDS
        for place, tap in enumerate(sorted(self._taps, key=lambda tap: not tap.speaks)):
            tap.finish(max(0.1, deadline - time.monotonic()))
            if place == 0 and self._late:
                for other in self._taps:
                    other.feed(list(self._late))
        facts = self._running_facts()
        store, self.store = self.store, None
        ended = {} if "ended" in self.info_given else {"ended": time.time()}
        if store is None:
            self._leave_note({**facts, **ended, **self.info_given})
            return
        try:
            store.write([*self._late, InfoItem({**facts, **ended})])
            store.finish()
        except Exception as error:
            self.store = store
            self._end_file(error)

    def _end_file(self, error: BaseException) -> None:
        store, self.store = self.store, None
        if store is not None:
            store.abandon()
            self._stopped = store, f"{error} ({type(error).__name__})"
            self._leave_note({})
            self._warn(error)

    def _leave_note(self, facts: dict[str, object]) -> None:
        """Have the file itself say that more steps were taken than it holds."""
        if self._stopped is None:
            return
        store, reason = self._stopped
        counts = {"recorded": store.committed_rows, "steps": self.steps_seen, "reason": reason}
        store.add_note({**facts, STOPPED: counts})

    def _warn(self, error: BaseException) -> None:
        warn(
            f"recording into {self.path} stopped: {error} ({type(error).__name__}). The training "
            "goes on, unrecorded from here. Free some space or choose another path for the run file"
        )

    def close(self) -> None:
        """Finish the file, unless this process inherited it."""
        self.pump.close(timeout=CLOSE_SECONDS)


def _for_file(batch: list[Handed]) -> list[Item | SealedStep]:
    return [item for item in batch if not isinstance(item, (TapItem, Exception))]


def _claim(path: Path, force: bool) -> None:
    """Create the file, so that two writers can never share one."""
    if force and path.exists():
        header = b"no file"
        if path.is_file():  # to open a pipe waits for its other end
            with path.open("rb") as existing:
                header = existing.read(100)
        if header and not is_run_file(header):
            raise RunFileError(f"{path} is not a run file: not replaced. Choose another path")
        if header and is_being_written(path):
            raise RunFileError(
                f"{path} is being written by another process: not replaced. Choose another path"
            )
        path.unlink()
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))  # its side files too
    except FileExistsError:
        raise RunFileError(
            f"{path} exists already, and a run is never overwritten silently: choose another "
            "path, or pass force=True (on the command line: --force)"
        ) from None
    remove_side_files(path)


def _close_with_worker(recorder: _Recorder) -> None:
    # a process started by multiprocessing ends without running atexit
    multiprocessing = sys.modules.get("multiprocessing")
    if multiprocessing is None or multiprocessing.parent_process() is None:
        return
    from multiprocessing.util import Finalize

    Finalize(None, recorder.close, exitpriority=10)
