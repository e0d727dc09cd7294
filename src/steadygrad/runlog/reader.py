"""open_run: a run file, read without ever changing it.

A finished file is opened as immutable, so that no side file appears beside it; one that
is being written is opened read-only with its journal, so that the freshest steps are seen.
Where SQLite would have to write first (a journal left by a crash in a read-only folder) a
private copy is read instead. Connections are short: a reader that stays inside would keep
the writer's journal growing.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from steadygrad.errors import RunFileError
from steadygrad.runlog import encode
from steadygrad.runlog.records import TensorInfo
from steadygrad.runlog.run import Event, Floats, Run
from steadygrad.runlog.schema import SCHEMA_VERSION, SQLITE_MAGIC, is_run_file
from steadygrad.runlog.store import SIDE_FILES

OPEN_TRIES = 5
MOST_LAYOUTS = 64
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
            self.rows = _rows(connection)

    @contextlib.contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        try:
            with _connect(self._file) as connection:
                yield connection
        except sqlite3.Error as error:
            raise RunFileError(f"{self._file} cannot be read: {error}") from error

    def steps(self, first: int, last: int) -> NDArray[Any]:
        table = encode.blank_steps(max(0, last - first))
        with self._reading() as connection:
            for start, rows, data in connection.execute(
                "SELECT first_row, rows, data FROM steps "
                "WHERE first_row < ? AND first_row + rows > ? ORDER BY first_row",
                (last, first),
            ):
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
            connection.execute("BEGIN")  # a writer joins chunks meanwhile
            layouts = _Layouts(connection)
            for first in _chunks_of(connection, rows):
                for start, layout, count, offsets, blob, beside in connection.execute(
                    f"SELECT first_row, layout, rows, offsets, {figure}, {exact} FROM figures "
                    "WHERE first_row = ? AND layout <= ?",
                    (first, self._last_layout),  # later ones may have tensors unknown here
                ):
                    here = start + encode.unpack(offsets, np.uint32, (count,)).astype(np.int64)
                    block = _Figures(figure, blob, beside, (count, len(layouts[layout])))
                    _place(out, rows, tensors, here, layouts[layout], block)
        return out

    def sample_names(self) -> list[str]:
        with self._reading() as connection:
            found = connection.execute("SELECT DISTINCT name FROM samples ORDER BY name")
            return [name for (name,) in found]

    def samples(self, name: str) -> tuple[NDArray[np.int64], Floats]:
        with self._reading() as connection:
            found = connection.execute(
                'SELECT step, layout, "values" FROM samples WHERE name = ? AND layout <= ? '
                "ORDER BY id",
                (name, self._last_layout),
            ).fetchall()
            layouts = _Layouts(connection)
            values = np.full((len(found), len(self.tensors)), np.nan)
            for row, (_, layout, blob) in enumerate(found):
                ids = layouts[layout]
                values[row, ids] = encode.unpack(blob, np.int64, (len(ids),)).view(np.float64)
        return np.array([step for step, _, _ in found], np.int64), values


def _chunks_of(connection: sqlite3.Connection, rows: NDArray[np.int64]) -> list[int]:
    """First rows of the chunks that hold any of these rows: the others are not even read."""
    chunks = connection.execute(
        "SELECT first_row, rows FROM steps WHERE first_row <= ? ORDER BY first_row",
        (int(rows[-1]),),
    ).fetchall()
    starts = np.array([first for first, _ in chunks], np.int64)
    ends = starts + np.array([count for _, count in chunks], np.int64)
    inside = np.searchsorted(rows, starts) < np.searchsorted(rows, ends)
    return [int(first) for first in starts[inside]]


class _Layouts:
    """Sets of tensors by their number, read when asked for; the latest few are remembered."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._recent: dict[int, NDArray[np.int64]] = {}

    def __getitem__(self, number: int) -> NDArray[np.int64]:
        if number not in self._recent:
            (ids,) = self._connection.execute(
                "SELECT tensor_ids FROM layouts WHERE id = ?", (number,)
            ).fetchone()
            if len(self._recent) >= MOST_LAYOUTS:
                del self._recent[next(iter(self._recent))]
            self._recent[number] = np.frombuffer(ids, np.int64)
        return self._recent[number]


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
        self, values: NDArray[Any], rows: NDArray[np.int64], columns: NDArray[np.int64]
    ) -> NDArray[Any]:
        # the stored order is tensor by tensor: take columns first
        taken = (
            values if len(columns) == self._shape[1] and _is_range(columns) else values[:, columns]
        )
        return taken if len(rows) == self._shape[0] else taken[rows]


def _place(
    out: Floats,
    rows: NDArray[np.int64],
    tensors: NDArray[np.int64],
    here: NDArray[np.int64],
    layout: NDArray[np.int64],
    block: _Figures,
) -> None:
    """Write the part of a block that was asked for where it belongs."""
    target = np.minimum(np.searchsorted(rows, here), len(rows) - 1)
    wanted = np.flatnonzero(rows[target] == here)
    column_of = np.full(int(max(layout.max(), tensors.max())) + 1, -1)
    column_of[layout] = np.arange(len(layout))
    columns = column_of[tensors]
    known = np.flatnonzero(columns >= 0)
    if not (len(wanted) and len(known)):
        return
    values = block.pick(wanted, columns[known])
    target = target[wanted]
    if _is_range(target - target[0]) and len(known) == len(tensors):
        out[target[0] : target[0] + len(target)] = values
    else:
        out[np.ix_(target, known)] = values


def _is_range(numbers: NDArray[np.int64]) -> bool:
    return bool(np.array_equal(numbers, np.arange(len(numbers))))


def _check(path: Path) -> None:
    """Say plainly what is wrong with a path that is no run file."""
    if path.is_dir():
        raise RunFileError(f"{path} is a folder: name the run file in it")
    try:
        header = _header(path)
    except FileNotFoundError:
        raise RunFileError(
            f"no run file at {path}: record one with `steadygrad run script.py`, or give the "
            "path that its --out or attach(run=...) named"
        ) from None
    except OSError as error:
        raise RunFileError(f"{path} cannot be read: {error.strerror}") from error
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
            except sqlite3.OperationalError:
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
        connection.execute("SELECT count(*) FROM step_columns").fetchone()
    except sqlite3.Error:
        connection.close()
        raise
    return connection


def _info(connection: sqlite3.Connection) -> dict[str, Any]:
    return {key: json.loads(value) for key, value in connection.execute("SELECT * FROM info")}


def _tensors(connection: sqlite3.Connection) -> list[TensorInfo]:
    return [
        TensorInfo(name, tuple(json.loads(shape)), dtype, module, position, optimizer)
        for name, shape, dtype, module, position, optimizer in connection.execute(
            "SELECT name, shape, dtype, module, position, optimizer FROM tensors ORDER BY id"
        )
    ]


def _events(connection: sqlite3.Connection) -> list[Event]:
    return [
        Event(step, at, kind, json.loads(data))
        for step, at, kind, data in connection.execute(
            "SELECT step, time, kind, data FROM events ORDER BY id"
        )
    ]


def _last_layout(connection: sqlite3.Connection) -> int:
    (last,) = connection.execute("SELECT coalesce(max(id), -1) FROM layouts").fetchone()
    return int(last)


def _step_columns(connection: sqlite3.Connection) -> list[str]:
    found = connection.execute("SELECT name FROM step_columns ORDER BY place")
    return [name for (name,) in found]


def _rows(connection: sqlite3.Connection) -> int:
    (rows,) = connection.execute("SELECT coalesce(max(first_row + rows), 0) FROM steps").fetchone()
    return int(rows)
