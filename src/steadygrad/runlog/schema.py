"""The tables of a run file, and how to tell that a file is one.

Steps are rows numbered from 0 in the order they were handed over. They lie in chunks:
small ones while they are fresh, so that a reader sees a step a moment after it was
taken, later joined into large ones that compress well. The same steps stand in a plain
table beside them, for programs that know nothing of steadygrad: nothing here reads it.
"""

from __future__ import annotations

from steadygrad.runlog.records import STEP_DTYPE

APPLICATION_ID = 0x53474C47  # "SGLG", in the file's header
SCHEMA_VERSION = 2
SQLITE_MAGIC = b"SQLite format 3\x00"

_KINDS = {"f": "REAL", "i": "INTEGER", "U": "TEXT"}
_NAMES = STEP_DTYPE.names or ()

PLAIN_STEPS = (
    f"CREATE TABLE steps ({', '.join(f'{n} {_KINDS[STEP_DTYPE[n].kind]}' for n in _NAMES)})"
)
"""A row a step, in the columns of `run.steps`. SQLite has no NaN: it stands as NULL."""
ADD_PLAIN_STEP = f"INSERT INTO steps VALUES ({', '.join('?' * len(_NAMES))})"

_CHUNKS = """CREATE TABLE {} (first_row INTEGER PRIMARY KEY, rows INTEGER NOT NULL,
        data BLOB NOT NULL)"""
TABLES = (
    "CREATE TABLE info (key TEXT PRIMARY KEY, value TEXT NOT NULL)",
    """CREATE TABLE tensors (id INTEGER PRIMARY KEY, name TEXT NOT NULL, shape TEXT NOT NULL,
        dtype TEXT NOT NULL, module TEXT NOT NULL, position INTEGER NOT NULL,
        optimizer INTEGER NOT NULL)""",
    "CREATE TABLE step_columns (place INTEGER PRIMARY KEY, name TEXT NOT NULL)",
    _CHUNKS.format("step_chunks"),
    PLAIN_STEPS,
    "CREATE TABLE layouts (id INTEGER PRIMARY KEY, tensor_ids BLOB NOT NULL)",
    """CREATE TABLE figures (first_row INTEGER NOT NULL, layout INTEGER NOT NULL,
        rows INTEGER NOT NULL, offsets BLOB NOT NULL, norms BLOB NOT NULL, max_abs BLOB NOT NULL,
        zeros BLOB NOT NULL, exact_norms BLOB, exact_max_abs BLOB, nonfinite BLOB)""",
    "CREATE INDEX figures_by_row ON figures (first_row)",
    """CREATE TABLE samples (id INTEGER PRIMARY KEY, name TEXT NOT NULL, step INTEGER NOT NULL,
        layout INTEGER NOT NULL, "values" BLOB NOT NULL)""",
    "CREATE INDEX samples_by_name ON samples (name)",
    """CREATE TABLE events (id INTEGER PRIMARY KEY, step INTEGER, time REAL NOT NULL,
        kind TEXT NOT NULL, data TEXT NOT NULL)""",
)


def chunks_table(version: int) -> str:
    """The table that holds the chunks of steps, by the file's format."""
    return "steps" if version == 1 else "step_chunks"


def tables_of(version: int) -> tuple[str, ...]:
    """How the tables of a file were made; format 1 has no plain steps.

    Example:
        >>> [table.split()[2] for table in tables_of(1)][:4]
        ['info', 'tensors', 'step_columns', 'steps']
    """
    if version != 1:
        return TABLES
    now, then = (_CHUNKS.format(chunks_table(number)) for number in (SCHEMA_VERSION, version))
    return tuple(then if table == now else table for table in TABLES if table != PLAIN_STEPS)


def is_run_file(header: bytes) -> bool:
    """Tell by its first 100 bytes whether a file is one of ours."""
    ours = APPLICATION_ID.to_bytes(4, "big")
    return header.startswith(SQLITE_MAGIC) and header[68:72] == ours
