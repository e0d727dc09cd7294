"""Writing into the SQLite file: rows into chunks, chunks into transactions.

One transaction a batch. Fresh steps go into small chunks of their own; once there are
enough of them they are replaced, in the same transaction, by one large chunk. SQLite
reports a busy file (a reader on a network file system) before anything is lost, so the
beginning and the commit of a transaction are tried again, never its inside.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import json
import math
import os
import sqlite3
import time
import weakref
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, cast
from urllib.parse import quote

import numpy as np

from steadygrad.runlog.coded import CodedFigures, CodedSteps
from steadygrad.runlog.descriptors import OwnDescriptors
from steadygrad.runlog.encode import Rows, encode_steps, pack
from steadygrad.runlog.filesystem import journal_mode
from steadygrad.runlog.items import (
    EventItem,
    InfoItem,
    Item,
    SampleItem,
    SealedStep,
    StepItem,
    StepsTogether,
    TensorsItem,
    rows_of,
)
from steadygrad.runlog.records import STEP_DTYPE, TensorInfo
from steadygrad.runlog.schema import (
    ADD_PLAIN_STEP,
    APPLICATION_ID,
    SCHEMA_VERSION,
    TABLES,
    chunks_table,
)

FRESH_LEVEL, CHUNK_LEVEL = 0, 1
"""How hard zlib tries. A fresh chunk is soon replaced, and so is not compressed; its usual
level 6 makes files 2 % smaller than level 1, and takes more than twice as long."""
MAX_CHUNK_ROWS = 256
MAX_CHUNK_BYTES = 8 << 20
MAX_LAYOUTS = 256
"""Sets of tensors that are remembered: a run may have another set at every step."""
BUSY_SECONDS = 300.0  # meanwhile steps wait in the queue, then are counted as missed
LEAVE_SECONDS = 1.0  # how long the end waits for readers, which are short
SIDE_FILES = ("-wal", "-shm", "-journal")

_CHUNKS = chunks_table(SCHEMA_VERSION)
_COLUMNS = tuple(STEP_DTYPE.names or ())

_OPEN: weakref.WeakSet[Store] = weakref.WeakSet()


def _disown_after_fork() -> None:
    # closing an inherited connection may wait for ever on a lock that a thread held at the
    # fork, and may remove the parent's journal: in a child it must outlive everything
    for store in list(_OPEN):
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(store._connection))


if hasattr(os, "register_at_fork"):  # Windows has no fork
    os.register_at_fork(after_in_child=_disown_after_fork)


class Store:
    """One run file, open for writing by one thread at a time.

    Args:
        path: an existing empty file.
        mode: SQLite's journal; None chooses by the file system.
        goes_on: the file is one that a store left, whose steps are added to.

    Attributes:
        tensors: those that the file knew before.
        optimizers: numbers of those whose steps it held before.
        next_step: number after the last of these steps.
        facts: what it said of the run before; all but the landmarks is forgotten.

    Raises:
        sqlite3.Error: where SQLite cannot write there.
    """

    def __init__(self, path: Path, mode: str | None = None, goes_on: bool = False) -> None:
        self.mode = mode or journal_mode(path)
        self._descriptors = OwnDescriptors(path, SIDE_FILES)
        self._connection = sqlite3.connect(
            path, isolation_level=None, check_same_thread=False, timeout=1.0
        )
        _OPEN.add(self)
        self._rows = self.committed_rows = 0
        self._chunk_start = 0
        self._fresh: list[CodedSteps] = []
        self._layouts: dict[bytes, int] = {}
        self._layout_count = 0
        self._sizes: list[int] = []
        self._highest = -math.inf
        self.landmarks: dict[str, int] = {}
        self._path, self._identity = path, _identity(path)
        self.tensors: list[TensorInfo] = []
        self.optimizers: set[int] = set()
        self.next_step = 0
        self.facts: dict[str, Any] = {}
        try:
            if goes_on:
                self._go_on()
            else:
                self._create()
        except sqlite3.Error:
            self._connection.close()
            raise
        self._descriptors.note()

    def _set_journal(self) -> None:
        run = self._connection.execute
        run(f"PRAGMA journal_mode = {self.mode}")
        run("PRAGMA synchronous = NORMAL")
        run("PRAGMA wal_autocheckpoint = 0")  # the caller checkpoints by the clock
        run("PRAGMA cache_spill = OFF")  # a spill takes the lock in mid-transaction

    def _go_on(self) -> None:
        self._set_journal()
        run = self._connection.execute
        for _, name, shape, *rest in run("SELECT * FROM tensors ORDER BY id").fetchall():
            self.tensors.append(TensorInfo(name, tuple(json.loads(shape)), *rest))
        self._sizes = [_size(tensor) for tensor in self.tensors]
        self.facts = {k: json.loads(v) for k, v in run("SELECT key, value FROM info").fetchall()}
        self.landmarks = self.facts.pop("landmarks", {})
        rows, layouts = (
            f"SELECT max(first_row + rows) FROM {_CHUNKS}",
            "SELECT max(id) + 1 FROM layouts",
        )
        self._layout_count = run(layouts).fetchone()[0] or 0
        self._rows = self.committed_rows = self._chunk_start = run(rows).fetchone()[0] or 0
        step, norm = run("SELECT max(step) + 1, max(norm) FROM steps").fetchone()
        self.next_step, self._highest = step or 0, -math.inf if norm is None else norm
        self.optimizers = {row[0] for row in run("SELECT DISTINCT optimizer FROM steps")}
        run("BEGIN IMMEDIATE")
        run("DELETE FROM info WHERE key != 'landmarks'")
        run("COMMIT")

    def _create(self) -> None:
        run = self._connection.execute
        run(f"PRAGMA application_id = {APPLICATION_ID}")
        self._set_journal()
        run("BEGIN IMMEDIATE")
        for statement in TABLES:
            run(statement)
        self._connection.executemany("INSERT INTO step_columns VALUES (?, ?)", enumerate(_COLUMNS))
        run(f"PRAGMA user_version = {SCHEMA_VERSION}")
        run("COMMIT")

    def write(self, items: Iterable[Item | SealedStep]) -> None:
        """Write a batch in one transaction.

        Raises:
            sqlite3.Error: where the disk is full, gone, or busy for too long.
            FileNotFoundError: the file is no longer there: what is written is lost.
        """
        if self._is_gone():
            raise FileNotFoundError("somebody has removed or replaced the run file")
        self._require_descriptors()
        self._retry("BEGIN IMMEDIATE")
        try:
            self._write_all(items)
        except BaseException:
            if self._connection.in_transaction:  # a full disk has ended it already
                self._connection.execute("ROLLBACK")
            raise
        self._retry("COMMIT")
        self.committed_rows = self._rows

    def _require_descriptors(self) -> None:
        """Write nothing where SQLite's descriptors are of other files now, as a script's."""
        if self._descriptors.taken():
            raise OSError("somebody has closed the run file, as os.close does in a loop")

    def _is_gone(self) -> bool:
        now = _identity(self._path)
        if self.mode != "WAL":  # a network file system may number its files anew
            return not any(now)
        return now != self._identity

    def _write_all(self, items: Iterable[Item | SealedStep]) -> None:
        steps: list[StepItem | SealedStep] = []
        for item in items:
            if isinstance(item, (StepItem, SealedStep)):
                steps.append(item)
            else:
                _WRITERS[type(item)](self, item)
        if steps:
            self._append(CodedSteps.joined([self._coded(rows) for rows in _side_by_side(steps)]))

    def _retry(self, statement: str) -> None:
        deadline = time.monotonic() + BUSY_SECONDS
        while not self._done(statement, last_try=time.monotonic() > deadline):
            pass

    def _done(self, statement: str, last_try: bool) -> bool:
        try:
            self._connection.execute(statement)
        except sqlite3.OperationalError as error:
            if last_try or "locked" not in str(error):
                raise
            return False
        return True

    def checkpoint(self) -> None:
        """Move what the journal holds into the file itself, as far as readers allow."""
        if self.mode == "WAL":
            self._connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()

    def finish(self) -> None:
        """Join the fresh chunks and leave one self-contained file."""
        self._require_descriptors()
        self._retry("BEGIN IMMEDIATE")
        self._join_fresh(everything=True)
        self._retry("COMMIT")
        self._leave_wal()
        self._connection.close()
        self._descriptors.forget()

    def _leave_wal(self) -> None:
        # as a plain file it opens in a read-only folder; with a reader still inside, WAL stays
        deadline = time.monotonic() + LEAVE_SECONDS
        while not self._has_left_wal() and time.monotonic() < deadline:
            time.sleep(0.02)

    def _has_left_wal(self) -> bool:
        try:
            self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
            mode = self._connection.execute("PRAGMA journal_mode = DELETE").fetchone()
        except sqlite3.OperationalError as error:
            if "locked" not in str(error):
                raise
            return False
        return bool(mode[0] == "delete")

    def abandon(self) -> None:
        """Close after a failure, whatever state the file is in."""
        if self._descriptors.taken():  # to close it is to close, and write to, what is not ours
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._connection))
            return
        self._descriptors.forget()
        try:
            self._connection.close()
        except sqlite3.Error:
            return

    def add_note(self, facts: dict[str, object]) -> bool:
        """Add facts to a file that was abandoned, if the disk has room for a few hundred bytes.

        A batch that found no room leaves what it had written already: the note stands there.

        Returns:
            Whether they are in the file.
        """
        if self._is_gone() or self._descriptors.taken():
            return False
        address = f"file:{quote(os.fsencode(self._path))}?mode=rw"
        try:
            self._connection = sqlite3.connect(
                address, uri=True, isolation_level=None, check_same_thread=False, timeout=1.0
            )
            self._connection.execute("BEGIN IMMEDIATE")
            self._write_info(InfoItem(facts))
            self._connection.execute("COMMIT")
        except sqlite3.Error:
            return False
        finally:
            self.abandon()
        return True

    def _coded(self, rows: StepsTogether) -> CodedSteps:
        figures = {}
        for tensor_ids, places, norms, max_abs, nonfinite, zeros in rows.figures:
            sizes = np.array([self._sizes[i] for i in tensor_ids], np.float64)
            shares = zeros / np.maximum(sizes, 1.0)
            coded = CodedFigures.of(places, norms, max_abs, nonfinite, shares)
            figures[tensor_ids.tobytes()] = coded
        return CodedSteps(rows.table, figures)

    def _append(self, steps: CodedSteps) -> None:
        self._connection.executemany(ADD_PLAIN_STEP, steps.table.tolist())
        self._fresh.append(steps)
        if sum(map(len, self._fresh)) < self._chunk_rows:
            self._write_chunk(self._rows, steps, FRESH_LEVEL)
        else:
            self._join_fresh()
        self._note_landmarks(steps.table)
        self._rows += len(steps)

    def _note_landmarks(self, table: Rows) -> None:
        norms = table["norm"]
        sound = (table["nonfinite"] == 0) & np.isfinite(norms)
        if not sound.all():
            self.landmarks.setdefault("first_nonfinite", self._rows + int(np.argmin(sound)))
        place = int(np.argmax(np.where(sound, norms, -np.inf)))
        if sound[place] and norms[place] > self._highest:
            self._highest = float(norms[place])
            self.landmarks["largest_norm"] = self._rows + place

    def _join_fresh(self, everything: bool = False) -> None:
        for table in (_CHUNKS, "figures"):
            self._connection.execute(
                f"DELETE FROM {table} WHERE first_row >= ?", (self._chunk_start,)
            )
        if not self._fresh:
            return
        steps, done, size = CodedSteps.joined(self._fresh), 0, self._chunk_rows
        while len(steps) - done >= size or (everything and done < len(steps)):
            chunk = steps.cut(done, done + size)
            self._write_chunk(self._chunk_start, chunk, CHUNK_LEVEL)
            self._chunk_start += len(chunk)
            done += len(chunk)
        self._fresh = [steps.cut(done, len(steps))] if done < len(steps) else []
        for left in self._fresh:
            self._write_chunk(self._chunk_start, left, FRESH_LEVEL)

    @property
    def _chunk_rows(self) -> int:
        row_bytes = 4 * 8 * max(1, len(self._sizes))
        return max(8, min(MAX_CHUNK_ROWS, MAX_CHUNK_BYTES // row_bytes))

    def _write_chunk(self, first_row: int, steps: CodedSteps, level: int) -> None:
        self._connection.execute(
            f"INSERT INTO {_CHUNKS} VALUES (?, ?, ?)",
            (first_row, len(steps), encode_steps(steps.table, level)),
        )
        for ids, figures in steps.figures.items():
            self._connection.execute(
                "INSERT INTO figures VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (first_row, self._layout(ids), len(figures.places), *figures.packed(level)),
            )

    def _layout(self, ids: bytes) -> int:
        if ids not in self._layouts:
            number, self._layout_count = self._layout_count, self._layout_count + 1
            self._connection.execute("INSERT INTO layouts VALUES (?, ?)", (number, ids))
            self._layouts[ids] = number
            if len(self._layouts) > MAX_LAYOUTS:  # one that comes back gets a second number
                del self._layouts[next(iter(self._layouts))]
        return self._layouts[ids]

    def _write_tensors(self, item: TensorsItem) -> None:
        for number, tensor in enumerate(item.tensors, item.first_id):
            self._sizes.append(_size(tensor))
            shape = json.dumps([int(length) for length in tensor.shape])
            row = (tensor.dtype, tensor.module, int(tensor.position), int(tensor.optimizer))
            self._connection.execute(
                "INSERT INTO tensors VALUES (?, ?, ?, ?, ?, ?, ?)",
                (number, tensor.name, shape, *row),
            )

    def _write_sample(self, item: SampleItem) -> None:
        self._connection.execute(
            'INSERT INTO samples (name, step, layout, "values") VALUES (?, ?, ?, ?)',
            (
                item.name,
                item.step,
                self._layout(item.tensor_ids.tobytes()),
                pack(item.values.view(np.int64)),
            ),
        )

    def _write_event(self, item: EventItem) -> None:
        self._connection.execute(
            "INSERT INTO events (step, time, kind, data) VALUES (?, ?, ?, ?)",
            (item.step, item.time, item.kind, to_json(item.data)),
        )

    def _write_info(self, item: InfoItem) -> None:
        self._connection.executemany(
            "INSERT OR REPLACE INTO info VALUES (?, ?)",
            [(key, to_json(value)) for key, value in item.values.items()],
        )


def _size(tensor: TensorInfo) -> int:
    return int(np.prod(tensor.shape, dtype=np.float64))


def _identity(path: Path) -> tuple[int, int]:
    """What tells a file from another that bears its name later; zeros where it is gone."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return 0, 0
    return status.st_dev, status.st_ino


_WRITERS: dict[type, Callable[[Store, Any], None]] = {
    TensorsItem: Store._write_tensors,
    SampleItem: Store._write_sample,
    EventItem: Store._write_event,
    InfoItem: Store._write_info,
}


def _side_by_side(steps: list[StepItem | SealedStep]) -> Iterator[StepsTogether]:
    """Neighbours of one kind together."""
    for kind, members in itertools.groupby(steps, type):
        alike = list(members)
        if issubclass(kind, SealedStep):
            yield kind.rows_together(cast("list[SealedStep]", alike))
        else:
            yield rows_of(cast("list[StepItem]", alike))


def to_json(value: object) -> str:
    """Write any value as JSON; what JSON does not know becomes its nearest plain form."""
    return json.dumps(value, default=_plain)


def _plain(value: object) -> object:
    if isinstance(value, (np.generic, np.ndarray)):
        return value.tolist()
    if isinstance(value, (set, frozenset)):
        return sorted(value, key=str)
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    return str(value)


def remove_side_files(path: Path) -> None:
    """Remove what SQLite may have left beside a file that is being replaced."""
    for suffix in SIDE_FILES:
        path.with_name(path.name + suffix).unlink(missing_ok=True)


def is_being_written(path: Path) -> bool:
    """Whether a process has a run file open; to be asked of one that is about to be replaced.

    A file in WAL mode leaves that mode only where nobody else is inside. On network file
    systems, which do without WAL, the answer is always no.
    """
    try:
        with contextlib.closing(sqlite3.connect(path, timeout=0.2)) as connection:
            connection.execute("PRAGMA journal_mode = DELETE").fetchone()
    except sqlite3.OperationalError as error:
        return "locked" in str(error)
    except sqlite3.Error:  # damaged: nobody's any more
        return False
    return False
