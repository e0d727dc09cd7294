"""SQLite: plain tables, which sqlite3, DuckDB and pandas read without steadygrad.

A run file keeps its steps compressed, which no view can undo. Here a step is a row. SQLite has
no NaN: it stands as NULL, and ``nonfinite`` counts the elements that were NaN or inf.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path

import numpy as np

from steadygrad.runlog import STEP_DTYPE
from steadygrad.runlog.items import Head
from steadygrad.sinks.base import Batch, Sink, tensor_figures
from steadygrad.sinks.files import create

_KINDS = {"f": "REAL", "i": "INTEGER", "U": "TEXT"}


class Sqlite(Sink):
    """A ``.sqlite`` file with a table ``steps`` and, with tensors, a table ``tensors``."""

    kind = "sqlite"
    suffix = ".sqlite"
    default_tensors = 0

    def open(self, head: Head) -> None:
        """Create the file and its tables."""
        path = Path(self.target or f"steps{self.suffix}")
        create(path, text=False).close()
        self._connection = sqlite3.connect(path)
        names = STEP_DTYPE.names or ()
        columns = ", ".join(f"{name} {_KINDS[STEP_DTYPE[name].kind]}" for name in names)
        self._connection.execute(f"CREATE TABLE steps ({columns})")
        self._connection.execute(
            "CREATE TABLE tensors (step INTEGER, optimizer INTEGER, tensor TEXT, norm REAL, "
            "max_abs REAL, nonfinite REAL, zeros REAL)"
        )
        self._connection.commit()

    def write(self, batch: Batch) -> None:
        """A row a step, and one a tensor where that is due."""
        marks = ", ".join("?" * len(STEP_DTYPE.names or ()))
        rows = np.asarray(batch.steps).tolist()
        self._connection.executemany(f"INSERT INTO steps VALUES ({marks})", rows)
        for row, step in enumerate(batch.steps):
            if self.wants_tensors(int(step["step"])):
                self._connection.executemany(
                    "INSERT INTO tensors VALUES (?, ?, ?, ?, ?, ?, ?)",
                    [
                        (int(step["step"]), int(step["optimizer"]), name, *figures.values())
                        for name, figures in tensor_figures(batch, row)
                    ],
                )
        self._connection.commit()

    def close(self) -> None:
        """Close the file."""
        self._connection.close()


SINK = Sqlite
