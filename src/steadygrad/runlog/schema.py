"""The tables of a run file, and how to tell that a file is one.

Steps are rows numbered from 0 in the order they were handed over. They lie in chunks:
small ones while they are fresh, so that a reader sees a step a moment after it was
taken, later joined into large ones that compress well.
"""

from __future__ import annotations

APPLICATION_ID = 0x53474C47  # "SGLG", in the file's header
SCHEMA_VERSION = 1
SQLITE_MAGIC = b"SQLite format 3\x00"

TABLES = (
    "CREATE TABLE info (key TEXT PRIMARY KEY, value TEXT NOT NULL)",
    """CREATE TABLE tensors (id INTEGER PRIMARY KEY, name TEXT NOT NULL, shape TEXT NOT NULL,
        dtype TEXT NOT NULL, module TEXT NOT NULL, position INTEGER NOT NULL,
        optimizer INTEGER NOT NULL)""",
    "CREATE TABLE step_columns (place INTEGER PRIMARY KEY, name TEXT NOT NULL)",
    """CREATE TABLE steps (first_row INTEGER PRIMARY KEY, rows INTEGER NOT NULL,
        data BLOB NOT NULL)""",
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


def is_run_file(header: bytes) -> bool:
    """Tell by its first 100 bytes whether a file is one of ours."""
    ours = APPLICATION_ID.to_bytes(4, "big")
    return header.startswith(SQLITE_MAGIC) and header[68:72] == ours
