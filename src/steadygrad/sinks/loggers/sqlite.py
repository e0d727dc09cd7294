"""SQLite: plain tables, which sqlite3, DuckDB and pandas read without steadygrad.

The table of steps is the one that every run file of format 2 has; here tensors may stand beside
it. SQLite has no NaN: it stands as NULL, and ``nonfinite`` counts the elements that were NaN or
inf.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path

import numpy as np

from steadygrad.runlog.items import Head
from steadygrad.runlog.schema import ADD_PLAIN_STEP, PLAIN_STEPS
from steadygrad.sinks.base import Batch, Sink, tensor_figures
from steadygrad.sinks.files import create


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
        self._connection.execute(PLAIN_STEPS)
        self._connection.execute(
            "CREATE TABLE tensors (step INTEGER, optimizer INTEGER, tensor TEXT, norm REAL, "
            "max_abs REAL, nonfinite REAL, zeros REAL)"
        )
        self._connection.commit()

    def write(self, batch: Batch) -> None:
        """A row a step, and one a tensor where that is due."""
        self._connection.executemany(ADD_PLAIN_STEP, np.asarray(batch.steps).tolist())
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
