"""open_run: a run file, read without ever changing it.

A finished file is opened as immutable, so that no side file appears beside it; one that
is being written is opened read-only with its journal, so that the freshest steps are seen.
Where SQLite would have to write first (a journal left by a crash in a read-only folder) a
private copy is read instead. Connections are short: a reader that stays inside would keep
the writer's journal growing.

The file may be damaged, or made to do harm: its tables must be the ones that the writer makes,
what it says of sizes is held against the bytes that are there, and a query that works for too
long is stopped. `decoding` and `encode` judge the fields.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import stat
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from steadygrad.errors import RunFileError
from steadygrad.runlog import decoding, encode
from steadygrad.runlog.encode import DamagedError, Rows
from steadygrad.runlog.info import RunInfo
from steadygrad.runlog.records import TensorInfo
from steadygrad.runlog.run import KEPT_BYTES, Event, Floats, Run
from steadygrad.runlog.schema import (
    SCHEMA_VERSION,
    SQLITE_MAGIC,
    chunks_table,
    is_run_file,
    tables_of,
)
from steadygrad.runlog.store import SIDE_FILES

OPEN_TRIES = 5
MOST_LAYOUTS = 64
MOST_CHUNK_ROWS = 4096
MOST_CHUNK_VALUES = 1 << 20
MOST_PACKED = 1032
"""Bytes that zlib can make of one: a column that claims more is not there."""
MOST_FIELD = 256 << 20
MOST_WORK = 500
"""Times `WORK` instructions of SQLite's machine in one look at the file: some ten seconds."""
WORK = 200_000
NEEDED = frozenset({"step", "norm", "action", "nonfinite", "optimizer"})
_EXACT = {"norms": "exact_norms", "max_abs": "exact_max_abs"}


def open_run(path: str | os.PathLike[str]) -> Run:
    """Open a run file, finished, being written, or left by a killed process.

    Args:
        path: the file.

    Returns:
        The run as it stands now; steps recorded later need another `open_run`.

    Raises:
        RunFileError: nothing there, not a run file, damaged, or of a newer steadygrad.

    Example:
        >>> open_run("no-such-run.db")
        Traceback (most recent call last):
        steadygrad.errors.RunFileError: no run file at no-such-run.db: ...
    """
    return Run(_File(Path(path)))


def as_run(run: Run | str | os.PathLike[str]) -> Run:
    """Open a path, and pass a run through.

    Raises:
        RunFileError: there is no readable run at the path.
    """
    return run if isinstance(run, Run) else open_run(run)


class _File:
    """A `Source` that reads a run file as far as it went when it was opened."""

    def __init__(self, path: Path) -> None:
        self.path: Path | None = path
        self._file = path
        _check(path)
        with self._reading() as connection:
            connection.execute("BEGIN")  # one view of all tables
            self.info = _info(connection)
            self.tensors = _tensors(connection)
            self.events = _events(connection)
            self._last_layout = _last_layout(connection)
            self._columns = _step_columns(connection)
            self.rows = _Chunks(connection, len(self._columns)).rows
        self._sampled: dict[str, _Sampled] = {}

    @contextlib.contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        with self._judging(), _connect(self._file) as connection:
            yield connection

    @contextlib.contextmanager
    def _judging(self) -> Iterator[None]:
        """Say in one way what is wrong with the file."""
        try:
            yield
        except DamagedError as error:
            raise RunFileError(f"{self._file} is damaged: {_in_one_line(error)}") from error
        except (sqlite3.Error, UnicodeDecodeError, OverflowError, MemoryError) as error:
            # sqlite3 decodes names inside its messages, and asks for what a damaged size says
            raise RunFileError(f"{self._file} cannot be read: {_in_one_line(error)}") from error
        except OSError as error:
            if isinstance(error, RunFileError):
                raise
            raise RunFileError(f"{self._file} cannot be read: {error.strerror}") from error

    def steps(self, first: int, last: int) -> Rows:
        table = encode.blank_steps(max(0, last - first))
        if not len(table):
            return table
        with self._reading() as connection:
            connection.execute("BEGIN")  # a writer joins chunks meanwhile
            chunks = _Chunks(connection, len(self._columns), first, last)
            for start in chunks.starts:
                rows, data = connection.execute(
                    f"SELECT rows, data FROM {chunks.table} WHERE first_row = ?", (start,)
                ).fetchone()
                chunk = encode.decode_steps(data, rows, self._columns)
                low, high = max(first, start), min(last, start + rows)
                table[low - first : high - first] = chunk[low - start : high - start]
        return table

    def figures(self, figure: str, rows: NDArray[np.int64], tensors: NDArray[np.int64]) -> Floats:
        out = np.full((len(rows), len(tensors)), np.nan)
        if not out.size:
            return out
        exact = _EXACT.get(figure, "NULL")
        with self._reading() as connection:
            connection.execute("BEGIN")
            layouts = _Layouts(connection, len(self.tensors))
            for first in _Chunks(connection, len(self._columns)).of(rows):
                for layout, count, offsets, blob, beside in connection.execute(
                    f"SELECT layout, rows, offsets, {figure}, {exact} FROM figures "
                    "WHERE first_row = ? AND layout <= ?",
                    (first, self._last_layout),  # later ones may have tensors unknown here
                ):
                    here = first + _offsets(offsets, _count(count))
                    target = np.minimum(np.searchsorted(rows, here), len(rows) - 1)
                    wanted = np.flatnonzero(rows[target] == here)
                    if not len(wanted):  # it is of other steps, as of one of many optimizers
                        continue
                    ids = layouts[layout]
                    shape = (_count(count, len(ids)), len(ids))
                    block = _Figures(figure, blob, beside, shape)
                    _place(out, target[wanted], tensors, wanted, ids, block)
        return out

    def sample_names(self) -> list[str]:
        with self._reading() as connection:
            names = connection.execute("SELECT DISTINCT name FROM samples ORDER BY name")
            return [decoding.text(name, "the name of a sample") for (name,) in names]

    def samples(
        self, name: str, tensors: NDArray[np.int64] | None = None
    ) -> tuple[NDArray[np.int64], Floats]:
        sampled = self._sampled.get(name)
        if sampled is None:
            with self._reading() as connection:
                sampled = _Sampled(connection, name, self._last_layout, self.tensors)
            self._sampled[name] = sampled
        if tensors is None:
            places, tensors = np.arange(len(sampled.steps)), np.arange(len(self.tensors))
        else:
            places = sampled.of({self.tensors[number].optimizer for number in tensors.tolist()})
        values = np.full((len(places), len(tensors)), np.nan)
        column_of = np.full(len(self.tensors), -1)
        column_of[tensors] = np.arange(len(tensors))
        with self._judging() if sampled.is_held else self._reading() as connection:
            for row, (ids, blob) in enumerate(sampled.read(connection, places.tolist())):
                measured = encode.unpack(blob, np.int64, (len(ids),)).view(np.float64)
                columns = column_of[ids]
                values[row, columns[columns >= 0]] = measured[columns >= 0]
        return sampled.steps[places], values


class _TablesMissingError(DamagedError):
    """A table is not in the file: never written, or still in a journal."""


class _Chunks:
    """Where the chunks of steps begin and end; they must follow each other without a gap.

    Args:
        connection: to the file.
        columns: how many a step has.
        first: a row.
        last: the row after the last one; of a file of a million steps, all chunks take 20 ms.

    Attributes:
        starts: first rows of the chunks that hold any row between the two.
        rows: how many there are up to the end of the last of these chunks.
    """

    def __init__(
        self,
        connection: sqlite3.Connection,
        columns: int,
        first: int = 0,
        last: int = decoding.INT64 - 1,
    ) -> None:
        self.table = table = chunks_table(_version(connection))
        listed = connection.execute(
            f"SELECT first_row, rows, length(data) FROM {table} WHERE first_row >= coalesce("
            f"(SELECT max(first_row) FROM {table} WHERE first_row <= ?), 0) AND first_row < ? "
            "ORDER BY first_row",
            (first, last),
        ).fetchall()
        if not set(map(type, chain.from_iterable(listed))) <= {int}:
            raise DamagedError("the table of steps holds something else than numbers")
        chunks = np.array(listed, np.float64).reshape(-1, 3)  # of which no sum overflows
        starts, rows, packed = chunks.T
        begin = float(starts[0]) if first and len(starts) else 0.0
        ends = begin + np.cumsum(rows)
        whole = (
            (rows > 0)
            & (rows <= MOST_CHUNK_ROWS)
            & (starts == ends - rows)
            & (rows * columns * 8 <= MOST_PACKED * packed)
        )
        if not whole.all():
            raise DamagedError(f"the chunk of steps number {int(np.argmin(whole))} is not whole")
        self._starts, self._ends = starts.astype(np.int64), ends.astype(np.int64)
        self.starts: list[int] = self._starts[self._ends > first].tolist()
        self.rows = int(self._ends[-1]) if len(self._ends) else 0

    def of(self, rows: NDArray[np.int64]) -> list[int]:
        """First rows of the chunks that hold any of these ascending rows."""
        inside = np.searchsorted(rows, self._starts) < np.searchsorted(rows, self._ends)
        return [int(first) for first in self._starts[inside]]


class _Sampled:
    """Where the samples of one figure stand in the file: of many optimizers, each asks for its own.

    What is small is held, so that none of them opens the file again.

    Args:
        connection: to the file.
        name: the figure's.
        last_layout: later ones may have tensors unknown here.
        tensors: the run's.

    Attributes:
        steps: of all samples, in the order in which they were taken.
        is_held: nothing of the file is needed any more.
    """

    def __init__(
        self,
        connection: sqlite3.Connection,
        name: str,
        last_layout: int,
        tensors: Sequence[TensorInfo],
    ) -> None:
        taken = connection.execute(
            'SELECT id, step, layout, length("values") FROM samples WHERE name = ? AND layout <= ? '
            "ORDER BY id",
            (name, last_layout),
        ).fetchall()
        steps = [decoding.integer(step, "the step of a sample") for _, step, _, _ in taken]
        self.steps = np.array(steps, np.int64)
        self._keys: list[int] = [key for key, _, _, _ in taken]
        self._layouts: list[int] = [layout for _, _, layout, _ in taken]
        self._count = len(tensors)
        layouts, size = _Layouts(connection, self._count), sum(row[3] or 0 for row in taken)
        self._ids: dict[int, NDArray[np.int64]] = {}
        owners: dict[int, set[int]] = {}
        for layout in dict.fromkeys(self._layouts):
            ids = layouts[layout]
            owners[layout] = {tensors[number].optimizer for number in ids.tolist()}
            size += ids.nbytes
            if size <= KEPT_BYTES:
                self._ids[layout] = ids
        self._places: dict[int, list[int]] = {}
        for place, layout in enumerate(self._layouts):
            for owner in owners[layout]:
                self._places.setdefault(owner, []).append(place)
        self.is_held = size <= KEPT_BYTES
        self._blobs = (
            [self._blob(connection, place) for place in range(len(taken))] if self.is_held else []
        )

    def of(self, optimizers: Iterable[int]) -> NDArray[np.int64]:
        """Places of the samples that hold tensors of any of these optimizers, ascending."""
        places = [place for number in optimizers for place in self._places.get(number, ())]
        return np.unique(np.array(places, np.int64))

    def read(
        self, connection: sqlite3.Connection | None, places: Sequence[int]
    ) -> Iterator[tuple[NDArray[np.int64], bytes]]:
        """The tensors of some samples, and their values as the file has them.

        Args:
            connection: to the file; not needed where everything is held.
            places: of the samples.
        """
        if connection is None:
            for place in places:
                yield self._ids[self._layouts[place]], self._blobs[place]
            return
        layouts = _Layouts(connection, self._count)
        for place in places:
            yield layouts[self._layouts[place]], self._blob(connection, place)

    def _blob(self, connection: sqlite3.Connection, place: int) -> bytes:
        row = connection.execute(
            'SELECT "values" FROM samples WHERE id = ?', (self._keys[place],)
        ).fetchone()
        if row is None:
            raise DamagedError("a sample is gone")
        blob: bytes = row[0]
        return blob


def _in_one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _count(count: object, tensors: int = 1) -> int:
    most = max(MOST_CHUNK_VALUES // max(1, tensors), 16)
    return decoding.integer(count, "the number of steps in a block", 1, min(most, MOST_CHUNK_ROWS))


def _offsets(blob: bytes, count: int) -> NDArray[np.int64]:
    offsets = encode.unpack(blob, np.uint32, (count,)).astype(np.int64)
    if offsets.max() >= MOST_CHUNK_ROWS:
        raise DamagedError("a block of figures names steps that are not there")
    return offsets


class _Layouts:
    """Sets of tensors by their number, read when asked for; the latest few are remembered."""

    def __init__(self, connection: sqlite3.Connection, tensors: int) -> None:
        self._connection, self._tensors = connection, tensors
        self._recent: dict[int, NDArray[np.int64]] = {}

    def __getitem__(self, number: int) -> NDArray[np.int64]:
        if number not in self._recent:
            row = self._connection.execute(
                "SELECT tensor_ids FROM layouts WHERE id = ?", (number,)
            ).fetchone()
            if len(self._recent) >= MOST_LAYOUTS:
                del self._recent[next(iter(self._recent))]
            self._recent[number] = self._sound(row)
        return self._recent[number]

    def _sound(self, row: tuple[object, ...] | None) -> NDArray[np.int64]:
        ids = row[0] if row else None
        if not isinstance(ids, bytes) or not ids or len(ids) % 8:
            raise DamagedError("a set of tensors is missing or cut")
        numbers = np.frombuffer(ids, np.int64)
        if not 0 <= numbers.min() <= numbers.max() < self._tensors:
            raise DamagedError("a set of tensors names some that are not there")
        return numbers


Figure = TypeVar("Figure", bound=np.generic)


class _Figures:
    """One block of one figure, decoded as far as it is needed."""

    def __init__(
        self, figure: str, blob: bytes | None, exact: bytes | None, shape: tuple[int, int]
    ) -> None:
        self._figure, self._blob, self._exact, self._shape = figure, blob, exact, shape

    def pick(self, rows: NDArray[np.int64], columns: NDArray[np.int64]) -> Floats:
        """Values at some rows and columns of the block."""
        if self._figure == "nonfinite" and self._blob is None:
            return np.zeros((len(rows), len(columns)))
        if self._figure == "nonfinite":
            return self._select(
                encode.unpack_sparse(self._blob, np.zeros(self._shape)), rows, columns
            )
        codes = encode.unpack(self._blob or b"", np.uint16, self._shape)
        if self._figure == "zeros":
            return encode.decode_shares(self._select(codes, rows, columns))
        if self._exact is None:
            return encode.decode_magnitudes(self._select(codes, rows, columns))
        full = encode.unpack_sparse(self._exact, encode.decode_magnitudes(codes))
        return self._select(full, rows, columns)

    def _select(
        self, values: NDArray[Figure], rows: NDArray[np.int64], columns: NDArray[np.int64]
    ) -> NDArray[Figure]:
        # the stored order is tensor by tensor: take columns first
        taken = (
            values if len(columns) == self._shape[1] and _is_range(columns) else values[:, columns]
        )
        return taken if len(rows) == self._shape[0] else taken[rows]


def _place(
    out: Floats,
    target: NDArray[np.int64],
    tensors: NDArray[np.int64],
    wanted: NDArray[np.int64],
    layout: NDArray[np.int64],
    block: _Figures,
) -> None:
    """Write the part of a block that was asked for where it belongs."""
    column_of = np.full(int(max(layout.max(), tensors.max())) + 1, -1)
    column_of[layout] = np.arange(len(layout))
    columns = column_of[tensors]
    recorded = np.flatnonzero(columns >= 0)
    if not len(recorded):
        return
    values = block.pick(wanted, columns[recorded])
    if _is_range(target - target[0]) and len(recorded) == len(tensors):
        out[target[0] : target[0] + len(target)] = values
    else:
        out[np.ix_(target, recorded)] = values


def _is_range(numbers: NDArray[np.int64]) -> bool:
    return bool(np.array_equal(numbers, np.arange(len(numbers))))


def _check(path: Path) -> None:
    """Say plainly what is wrong with a path that is no run file."""
    try:
        kind = path.stat().st_mode
        if stat.S_ISDIR(kind):
            raise RunFileError(f"{path} is a folder: name the run file in it")
        if not stat.S_ISREG(kind):  # to open a pipe waits for its other end
            raise RunFileError(f"{path} is not a run file: it is not a file at all")
        header = _header(path)
        _check_side_files(path)
    except FileNotFoundError:
        raise RunFileError(
            f"no run file at {path}: record one with `steadygrad run script.py`, or give the "
            "path that its --out or attach(run=...) named"
        ) from None
    except RunFileError:
        raise
    except OSError as error:
        raise RunFileError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:  # a path with a zero character
        raise RunFileError(f"{str(path)!r} cannot be read: {error}") from error
    if not header:
        raise RunFileError(f"{path} is empty: recording never began there")
    if not header.startswith(SQLITE_MAGIC):
        raise RunFileError(f"{path} is not a run file: it is not an SQLite database")
    if not is_run_file(header):
        raise RunFileError(f"{path} is an SQLite database, but steadygrad did not write it")
    version = int.from_bytes(header[60:64], "big")
    if version > SCHEMA_VERSION:
        raise RunFileError(
            f"{path} has format {version}, this steadygrad reads up to {SCHEMA_VERSION}: "
            "pip install --upgrade steadygrad"
        )


def _check_side_files(path: Path) -> None:
    """SQLite opens what stands beside the file, and waits where that is a pipe."""
    for suffix in SIDE_FILES:
        beside = path.with_name(path.name + suffix)
        with contextlib.suppress(FileNotFoundError):
            if not stat.S_ISREG(beside.stat().st_mode):
                raise RunFileError(
                    f"{path} cannot be read: {beside.name} beside it is no file. Remove it"
                )


def _header(path: Path) -> bytes:
    for left in reversed(range(OPEN_TRIES)):
        with path.open("rb") as file:
            header = file.read(100)
        if header or not left:
            break
        time.sleep(0.05)  # a writer may just have created it
    return header


@contextlib.contextmanager
def _connect(path: Path) -> Iterator[sqlite3.Connection]:
    with contextlib.ExitStack() as stack:
        for left in reversed(range(OPEN_TRIES)):
            try:
                connection = _open_in_place(path)
                break
            except (sqlite3.OperationalError, _TablesMissingError) as error:
                if "interrupted" in str(error):
                    raise
                # without its shared-memory file, a read-only folder holds a journal that
                # SQLite can only read after a recovery: recover a copy
                if not os.access(path.parent, os.W_OK) or not left:
                    connection = _open_copy(path, stack)
                    break
                time.sleep(0.05)  # a writer is just beginning or ending
        stack.callback(connection.close)
        yield connection


def _open_in_place(path: Path) -> sqlite3.Connection:
    journal = path.with_name(path.name + "-wal")
    with path.open("rb") as file:
        wal = file.read(20)[18:19] == b"\x02"
    idle = wal and not (journal.exists() and journal.stat().st_size)
    return _probed(path.absolute().as_uri() + ("?immutable=1" if idle else "?mode=ro"))


def _open_copy(path: Path, stack: contextlib.ExitStack) -> sqlite3.Connection:
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="steadygrad-")))
    copy = folder / path.name
    for suffix in ("", *SIDE_FILES):
        source = path.with_name(path.name + suffix)
        if source.exists() and suffix != "-shm":
            shutil.copyfile(source, folder / (path.name + suffix))
    return _probed(copy.as_uri() + "?mode=rw")


def _probed(uri: str) -> sqlite3.Connection:
    connection = sqlite3.connect(uri, uri=True, isolation_level=None, timeout=10.0)
    try:
        _limit(connection)
        _check_tables(connection)
    except BaseException:
        connection.close()
        raise
    return connection


def _limit(connection: sqlite3.Connection) -> None:
    """Bound what a hostile file can make of this connection."""
    spent = 0

    def count() -> bool:
        nonlocal spent
        spent += 1
        return spent > MOST_WORK

    connection.set_progress_handler(count, WORK)
    if sys.version_info >= (3, 11):
        connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, MOST_FIELD)
    connection.text_factory = lambda raw: raw.decode("utf-8", "replace")
    connection.execute("PRAGMA trusted_schema = OFF")
    connection.execute("PRAGMA cell_size_check = ON")


def _check_tables(connection: sqlite3.Connection) -> None:
    """Nothing is read from a table that the writer did not make: a view may never end."""
    written = dict(
        connection.execute("SELECT name, sql FROM sqlite_schema WHERE type = 'table'").fetchall()
    )
    for statement in tables_of(_version(connection)):
        name = statement.split()[2]
        if not statement.startswith("CREATE TABLE"):
            continue
        if name not in written:
            raise _TablesMissingError(
                f"its table {name} is missing. Its recording was cut off before the first step, or "
                "it was copied without the -wal file that stood beside it"
            )
        if written[name] != statement:
            raise DamagedError(f"its table {name} is not as steadygrad makes it")


def _version(connection: sqlite3.Connection) -> int:
    """The file's format; in a journal it may be newer than what the header says."""
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    return int(version)


def _info(connection: sqlite3.Connection) -> RunInfo:
    facts: dict[str, object] = {}
    for key, value in connection.execute("SELECT key, value FROM info"):
        with contextlib.suppress(DamagedError):
            facts[decoding.text(key, "the name of a fact")] = decoding.json_value(value, "a fact")
    return decoding.info(facts)


def _tensors(connection: sqlite3.Connection) -> list[TensorInfo]:
    tensors: list[TensorInfo] = []
    for number, *row in connection.execute(
        "SELECT id, name, shape, dtype, module, position, optimizer FROM tensors ORDER BY id"
    ):
        if number != len(tensors):
            raise DamagedError(f"tensor {len(tensors)} is missing")
        tensors.append(decoding.tensor(tuple(row)))
    return tensors


def _events(connection: sqlite3.Connection) -> list[Event]:
    events: list[Event] = []
    for row in connection.execute("SELECT step, time, kind, data FROM events ORDER BY id"):
        with contextlib.suppress(DamagedError):
            decoded = decoding.event(row)
            events += [] if decoded is None else [decoded]
    return events


def _last_layout(connection: sqlite3.Connection) -> int:
    (last,) = connection.execute("SELECT coalesce(max(id), -1) FROM layouts").fetchone()
    return decoding.integer(last, "the number of a set of tensors")


def _step_columns(connection: sqlite3.Connection) -> list[str]:
    rows = connection.execute("SELECT name FROM step_columns ORDER BY place LIMIT 100").fetchall()
    names = [decoding.text(name, "a column of steps") for (name,) in rows]
    if len(set(names)) != len(names) or not set(names) >= NEEDED:
        raise DamagedError(f"its columns of steps are {', '.join(names)[:200]}")
    return names
