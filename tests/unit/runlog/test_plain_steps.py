"""The plain table of steps: other tools read a run file, live or finished, without code of ours."""

from __future__ import annotations

import contextlib
import gzip
import math
import shutil
import sqlite3
import subprocess
from collections.abc import Iterator
from pathlib import Path

import duckdb
import numpy as np
import pandas as pd
import pytest

from steadygrad.runlog import Run, RunWriter, StepRecord, TensorInfo, open_run

QUESTION = "SELECT step, norm, loss, threshold, action FROM steps"
COLUMNS = ["step", "norm", "loss", "threshold", "action"]
OLD = Path(__file__).parent / "data" / "format-1.db.gz"


def write(writer: RunWriter, steps: int) -> None:
    ids = writer.add_tensors([TensorInfo("w", (2,))])
    for step in range(steps):
        broken = step == 7
        writer.write_step(
            StepRecord(
                step,
                loss=1 / (step + 1),
                norm=math.nan if broken else 1.5 * step,
                threshold=math.inf if step < 3 else 1.0,
                action="skip" if broken else "clip" if step > 2 else "none",
                nonfinite=int(broken),
                time=math.nan if step == 5 else 1e9 + step,
            ),
            ids, [1.0], [1.0], [int(broken)], [0],
        )  # fmt: skip


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("plain") / "run.db"
    with RunWriter(made) as writer:
        for part in (150, 150):  # joined into large chunks in between
            write(writer, part)
            writer.flush()
    return made


@pytest.fixture
def connection(path: Path) -> Iterator[sqlite3.Connection]:
    with contextlib.closing(sqlite3.connect(path)) as opened:
        yield opened


def expected(run: Run, names: list[str]) -> pd.DataFrame:
    return pd.DataFrame({name: np.asarray(run.steps[name]) for name in names})


def test_pandas_reads_every_column_exactly(path: Path, connection: sqlite3.Connection) -> None:
    by_pandas = pd.read_sql("SELECT * FROM steps", connection)
    wanted = expected(open_run(path), list(by_pandas.columns))
    assert list(by_pandas.columns) == list(open_run(path).steps.dtype.names)
    assert len(wanted) == 300
    pd.testing.assert_frame_equal(by_pandas, wanted, check_dtype=False, check_exact=True)


def test_sqlite3_reads_them_and_nan_is_null(path: Path, connection: sqlite3.Connection) -> None:
    rows = connection.execute(QUESTION).fetchall()
    assert rows[7] == (7, None, 1 / 8, 1.0, "skip")
    assert rows[2] == (2, 3.0, 1 / 3, math.inf, "none")
    if shutil.which("sqlite3"):
        told = subprocess.run(
            ["sqlite3", path, f"{QUESTION} LIMIT 4 OFFSET 3"], capture_output=True, text=True
        )
        assert told.stdout.splitlines()[0] == "3|4.5|0.25|1.0|clip"


def test_duckdb_reads_them(path: Path, connection: sqlite3.Connection) -> None:
    """Through pandas; with its own extension, which it downloads, the file as it is."""
    steps = pd.read_sql("SELECT * FROM steps", connection)
    with contextlib.closing(duckdb.connect()) as duck:
        asked = QUESTION.replace("FROM steps", "FROM frame")
        by_pandas = duck.register("frame", steps).execute(asked).df()
        pd.testing.assert_frame_equal(by_pandas, expected(open_run(path), COLUMNS))
        try:
            duck.execute("LOAD sqlite")
        except duckdb.Error:  # not at hand, and no network to bring it
            return
        duck.execute(f"ATTACH '{path}' AS run (TYPE sqlite, READ_ONLY)")
        direct = duck.execute(QUESTION.replace("FROM steps", "FROM run.steps")).df()
        pd.testing.assert_frame_equal(direct, by_pandas)


def test_a_run_that_goes_on_is_read_as_far_as_it_is(tmp_path: Path) -> None:
    with RunWriter(tmp_path / "run.db") as writer:
        for steps in (20, 40):
            write(writer, 20)
            writer.flush()
            with contextlib.closing(sqlite3.connect(tmp_path / "run.db")) as connection:
                assert len(pd.read_sql(QUESTION, connection)) == steps


def test_a_file_of_format_1_still_opens(tmp_path: Path) -> None:
    """It was written by the code of then: 300 steps of two tensors, the last one broken."""
    (tmp_path / "old.db").write_bytes(gzip.decompress(OLD.read_bytes()))
    run = open_run(tmp_path / "old.db")
    assert run.steps.norm[:299].tolist() == [1.0 + step / 100 for step in range(299)]
    assert np.isnan(run.steps.norm[299])
    assert run.steps.action[[0, 1, 299]].tolist() == ["none", "clip", "skip"]
    assert run.tensor_norms.shape == (300, 2)
    assert run.tensor_nonfinite[299].tolist() == [1, 0]
    assert run.samples("weight_norm")[1].tolist() == [[3.0, 4.0]]
    assert [event.kind for event in run.events] == ["script_clip"]
