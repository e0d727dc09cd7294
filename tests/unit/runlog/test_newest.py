"""Commands without a file read the run of this folder that was written to last."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from steadygrad.cli import group
from steadygrad.errors import RunFileError
from steadygrad.runlog import RunWriter, StepRecord, TensorInfo
from steadygrad.runlog.newest import newest_run


@pytest.fixture
def record(record_run: Callable[..., Path], figures: Callable[..., object]) -> Callable[..., Path]:
    def written_at(name: str, second: int) -> Path:
        path = record_run(figures(60, 2), name)
        os.utime(path, (second, second))
        return path

    return written_at


def test_the_run_written_last_is_taken_and_other_databases_are_not(
    tmp_path: Path, record: Callable[..., Path]
) -> None:
    record("b.db", 100)
    newer = record("a.db", 200)
    with closing(sqlite3.connect(tmp_path / "mlflow.db")) as other, other:
        other.execute("CREATE TABLE steps (a)")
    (tmp_path / "text.db").write_text("no database")
    (tmp_path / "empty.db").touch()
    assert newest_run(tmp_path) == newer


def test_a_run_that_is_being_recorded_is_newer_than_a_finished_one(
    tmp_path: Path, record: Callable[..., Path]
) -> None:
    with RunWriter(tmp_path / "live.db") as writer:
        writer.write_step(
            StepRecord(0, norm=1.0), writer.add_tensors([TensorInfo("w", (2,))]), [1], [1], [0], [0]
        )
        record("done.db", 100)
        assert newest_run(tmp_path).name == "live.db"


def test_of_several_ranks_rank_0_speaks(tmp_path: Path, record: Callable[..., Path]) -> None:
    record("run-rank0.db", 100)
    record("run-rank1.db", 200)
    assert newest_run(tmp_path).name == "run-rank0.db"


def test_a_folder_without_runs_says_what_to_type(tmp_path: Path) -> None:
    with pytest.raises(RunFileError, match=r"no run file in .*: type steadygrad run"):
        newest_run(tmp_path)


@pytest.mark.parametrize(
    "words", [["report"], ["report", "--json"], ["diagnose"], ["calibrate"], ["watch", "--once"]]
)
def test_commands_without_a_file_say_which_run_they_read(
    words: list[str],
    tmp_path: Path,
    record: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def errors_and_status() -> tuple[str, object]:
        with pytest.raises(SystemExit) as end:
            group(words)
        return capsys.readouterr().err, end.value.code

    monkeypatch.chdir(tmp_path)
    said, status = errors_and_status()
    assert status == 2
    assert "no run file in" in said
    record("old.db", 100)
    record("new.db", 200)
    assert errors_and_status() == ("steadygrad: reading new.db, the newest run here\n", 0)
