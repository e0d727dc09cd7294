"""Snapshots on disk are whole or not there."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from steadygrad.errors import SteadyGradWarning
from steadygrad.recovery.batches import LeftOut
from steadygrad.recovery.files import read_newest, write_snapshot

WRITER = """
import sys, itertools
from pathlib import Path
from steadygrad.recovery.files import write_snapshot
for step in itertools.count(1):
    write_snapshot(Path(sys.argv[1]), step, bytes([step % 251]) * 4_000_000, 3)
    print(step, flush=True)
"""


def test_a_broken_one_is_passed_over(tmp_path: Path) -> None:
    write_snapshot(tmp_path, 1, b"first", 3)
    second = write_snapshot(tmp_path, 2, b"second", 3)
    assert read_newest(tmp_path) == (2, b"second")
    for broken in (second.read_bytes()[:-1], second.read_bytes()[:-1] + b"X", b""):
        second.write_bytes(broken)
        assert read_newest(tmp_path) == (1, b"first")


def test_a_snapshot_is_not_there_before_it_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_snapshot(tmp_path, 1, b"first", 1)
    during = []

    def fsync(_: int) -> None:
        during.extend(path.name for path in tmp_path.glob("*.snapshot"))
        raise OSError("the disk is full")

    monkeypatch.setattr("os.fsync", fsync)
    with pytest.raises(OSError, match="full"):
        write_snapshot(tmp_path, 2, b"second", 1)
    assert during == ["step-000000001.snapshot"]
    assert read_newest(tmp_path) == (1, b"first")


def test_a_kill_loses_at_most_the_one_being_written(tmp_path: Path) -> None:
    command = [sys.executable, "-c", WRITER, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        last = [int(process.stdout.readline()) for _ in range(5)][-1]
        time.sleep(0.007)
        process.kill()
        last = max([last, *map(int, process.stdout.read().split())])
    newest = read_newest(tmp_path)
    assert newest is not None
    assert newest[0] >= last
    assert newest[1] == bytes([newest[0] % 251]) * 4_000_000


def test_a_run_that_begins_anew_sets_aside_what_an_earlier_one_wrote(tmp_path: Path) -> None:
    for step in (100, 200, 300):
        write_snapshot(tmp_path, step, b"old", 3)
    for step in (10, 20):
        write_snapshot(tmp_path, step, b"new", 3)
        assert read_newest(tmp_path) == (step, b"new")
    assert len(list(tmp_path.glob("*.unused"))) == 3


def test_a_list_that_cannot_be_written_ends_no_training(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    left_out = LeftOut(tmp_path / "file" / "skip_batches.json")
    with pytest.warns(SteadyGradWarning, match="was not written"):
        left_out.add(2, 3)
    assert left_out.numbers() == [2, 3]


def test_the_list_of_batches_is_not_written_anew_at_each_of_many(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]

    def clock() -> float:  # each look takes a second, so a list takes one to write
        now[0] += 1.0
        return now[0]

    monkeypatch.setattr("steadygrad.recovery.batches.time.perf_counter", clock)
    writes = []
    left_out = LeftOut(tmp_path / "skip_batches.json")
    monkeypatch.setattr("os.replace", lambda *_: writes.append(now[0]))
    for number in range(1000):
        left_out.add(number, number)
    assert len(writes) == pytest.approx(1000 / 100, abs=2)
    monkeypatch.undo()
    left_out.write()
    assert LeftOut(tmp_path / "skip_batches.json").numbers() == list(range(1000))


@pytest.mark.parametrize(
    "content",
    ['{"batches": [1e999, "x", [2], null, true, 3]}', '{"batches": ' + "[" * 99_999, "[1]", "\xff"],
)
def test_a_list_that_is_none_of_ours_leaves_out_what_is_sound_in_it(
    content: str, tmp_path: Path
) -> None:
    (tmp_path / "skip_batches.json").write_bytes(content.encode("latin-1"))
    assert LeftOut(tmp_path / "skip_batches.json").numbers() in ([], [3])


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no named pipes")
def test_a_pipe_among_the_snapshots_is_not_opened(tmp_path: Path) -> None:
    write_snapshot(tmp_path, 1, b"first", 3)
    os.mkfifo(tmp_path / "step-000000002.snapshot")
    os.mkfifo(tmp_path / "skip_batches.json")
    assert read_newest(tmp_path) == (1, b"first")
    assert LeftOut(tmp_path / "skip_batches.json").numbers() == []


def test_batches_left_out_outlive_the_process(tmp_path: Path) -> None:
    LeftOut(tmp_path / "skip_batches.json").add(2, 3)
    assert list(LeftOut(tmp_path / "skip_batches.json").of(range(6))) == [0, 1, 4, 5]
