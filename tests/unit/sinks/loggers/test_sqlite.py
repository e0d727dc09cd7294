"""Plain tables: other tools read what was recorded, without any code of ours."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Callable
from pathlib import Path

import duckdb
import numpy as np
import pandas as pd
import pytest

from steadygrad.errors import UsageError
from steadygrad.runlog import Run, open_run
from steadygrad.sinks import export, open_sink, replay

QUESTION = "SELECT step, norm, loss, threshold, action FROM steps ORDER BY step"


@pytest.fixture
def exported(recorded: Run, tmp_path: Path) -> Path:
    return Path(export(recorded, "sqlite", tmp_path / "steps.sqlite", tensors=1))


def test_sqlite3_and_pandas_read_the_steps(exported: Path, recorded: Run) -> None:
    names = ["step", "norm", "loss", "threshold", "action"]
    expected = pd.DataFrame({name: np.asarray(recorded.steps[name]) for name in names})
    with contextlib.closing(sqlite3.connect(exported)) as connection:
        by_pandas = pd.read_sql_query(QUESTION, connection)
        rows = connection.execute(QUESTION).fetchall()
    pd.testing.assert_frame_equal(by_pandas, expected, check_dtype=False)
    assert rows[9] == (9, 5.0, 0.1, 1.0, "clip")
    assert rows[7] == (7, None, None, 1.0, "skip")  # SQLite has no NaN


def test_duckdb_reads_what_is_exported(recorded: Run, tmp_path: Path) -> None:
    path = export(recorded, "parquet", tmp_path / "steps.parquet")
    with contextlib.closing(duckdb.connect()) as connection:
        rows = connection.execute(QUESTION.replace("FROM steps", f"FROM '{path}'")).fetchall()
    assert len(rows) == 30
    assert rows[9] == (9, 5.0, 0.1, 1.0, "clip")
    assert np.isnan(rows[7][1])


def test_tensors_are_rows(exported: Path) -> None:
    with contextlib.closing(sqlite3.connect(exported)) as connection:
        found = connection.execute("SELECT tensor, norm FROM tensors WHERE step = 3").fetchall()
        count = connection.execute("SELECT count(*) FROM tensors").fetchone()
    assert [name for name, _ in found] == ["fc.weight", "fc.bias"]
    assert [norm for _, norm in found] == pytest.approx([3.0, 4.0], rel=2e-3)
    assert count == (60,)


def test_live_as_from_the_file(live: Callable[..., Path], tmp_path: Path) -> None:
    path = live(f"sqlite:{tmp_path}/live.sqlite")
    replay(open_run(path), open_sink(f"sqlite:{tmp_path}/later.sqlite"))
    tables = []
    for name in ("live", "later"):
        with contextlib.closing(sqlite3.connect(tmp_path / f"{name}.sqlite")) as connection:
            tables.append(connection.execute("SELECT * FROM steps").fetchall())
    assert tables[0] == tables[1]
    assert len(tables[0]) == 30


def test_a_file_that_is_there_is_left_alone(exported: Path, recorded: Run) -> None:
    before = exported.read_bytes()
    with pytest.raises(UsageError, match="exists already"):
        export(recorded, "sqlite", exported)
    assert exported.read_bytes() == before
