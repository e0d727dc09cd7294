"""A folder's runs: what is drawn of a long one before it is judged, what is told, and when."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from steadygrad.runlog import RunWriter, StepRecord, TensorInfo, thinning
from steadygrad.serve import folder as folders
from steadygrad.serve.app import _of_runs
from steadygrad.serve.folder import Folder


def test_a_long_run_is_drawn_before_it_is_judged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (folders, thinning):
        monkeypatch.setattr(module, "LONG", 2000)
    for name, value in (("END", 200), ("STRETCH", 20)):
        monkeypatch.setattr(thinning, name, value)
    with RunWriter(tmp_path / "long.db") as writer:
        ids = writer.add_tensors([TensorInfo("w", (2,))])
        for step in range(3000):
            norm = 1.0 + 0.1 * (step % 7)
            writer.write_step(StepRecord(step, norm=norm, loss=1.0), ids, [norm], [norm], [0], [0])
    folder = Folder(tmp_path)
    folder._list()
    (key,) = folder._rows
    row = folder._rows[key]
    folder._read(row)
    first, before = folder.report((key,))[0], folder.mark((key,))
    assert first["runs"][0]["verdict"]["word"] == "Not judged yet"
    assert first["runs"][0]["findings"] == []
    assert first["runs"][0]["series"][0]
    assert "until the rules have been applied" in first["notes"][0]
    folder._judge(row)
    assert folder.mark((key,)) != before  # so the page asks again
    told = folder.report((key,))[0]["runs"][0]
    assert told["verdict"]["word"] == row.entry.word != "Not judged yet"
    assert told["thresholds"]


def broken(path: Path, steps: int, *, force: bool = False) -> RunWriter:
    """A run that goes on, NaN from its first step."""
    writer = RunWriter(path, force=force)
    ids = writer.add_tensors([TensorInfo("w", (2,))])
    nan = float("nan")
    for step in range(steps):
        writer.write_step(StepRecord(step, norm=nan, nonfinite=2), ids, [nan], [0], [2], [0])
    writer.flush()
    return writer


def test_a_second_run_under_the_name_of_an_earlier_one_is_told_of_too(tmp_path: Path) -> None:
    folder, path = Folder(tmp_path), tmp_path / "run.db"
    told: list[list[str]] = []
    for again in (False, True):
        writer = broken(path, 5, force=again)
        folder._list()
        (row,) = folder._rows.values()
        row.next_read = 0.0
        folder._read(row)
        assert row.entry.sentence == ""  # nothing is said of it that was of the one before
        for _ in range(2):  # looking again tells nothing again
            folder._judge(row)
        told.append([alert["id"] for alert in folder.changes(-1)["alerts"]])
        writer.close()
    assert told[0]
    assert told[1] == 2 * told[0]


def test_what_is_written_before_the_page_listens_is_news(tmp_path: Path) -> None:
    folder, writer = Folder(tmp_path), broken(tmp_path / "run.db", 5)
    folder._list()
    (key,) = folder._rows
    folder._read(folder._rows[key])
    _, mark = folder.report((key,))
    assert _of_runs(folder, (key,), mark)() is None
    writer.write_step(StepRecord(5, norm=1.0), [], [], [], [], [])
    writer.flush()
    news = _of_runs(folder, (key,), mark)
    assert news() == {"changed": True}
    assert news() is None
    writer.close()


def test_a_file_that_could_not_be_read_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Too many open files, or permissions, which leave no mark on it."""
    broken(tmp_path / "run.db", 5).close()
    folder = Folder(tmp_path)
    folder._list()
    (row,) = folder._rows.values()
    unreadable = replace(row.entry, state="unreadable", word="Unreadable", sentence="no")
    with monkeypatch.context() as failing:
        failing.setattr(folders, "read", lambda _: (unreadable, None))
        folder._read(row)
        folder._judge(row)
    for state, last_read in (("unreadable", row.last_read), ("ended", -folders.AGAIN_SECONDS)):
        row.next_read, row.last_read = 0.0, last_read
        folder._read(row)
        assert row.entry.state == state
    assert (row.entry.word, row.entry.sentence) == ("", "")
    row.next_judged = 0.0
    assert folder._due() == [row]
