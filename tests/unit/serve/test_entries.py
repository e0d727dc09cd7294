"""What a row holds, whatever the file does."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path

import pytest

from steadygrad.runlog import RunWriter, StepRecord, TensorInfo
from steadygrad.serve.entries import SPARK_POINTS, read


@pytest.mark.parametrize("started", [math.nan, math.inf, 10**400, "yesterday", [1], None])
def test_any_facts_make_a_row_of_strict_json(tmp_path: Path, started: object) -> None:
    path = tmp_path / "run.db"
    with RunWriter(path, info={"policy": {"a": ["x" * 5000]}}) as writer:
        if started != 10**400:
            writer.update_info(started=started)
        ids = writer.add_tensors([TensorInfo("w", (2,))])
        for step in range(150):
            norm = math.nan if step >= 147 else 1e6 if step == 77 else 1.0
            writer.write_step(
                StepRecord(step, norm=norm, time=math.nan), ids, [norm], [1], [0], [0]
            )
    entry, run = read(path)
    assert run is not None
    json.dumps(asdict(entry), allow_nan=False)
    assert len(entry.policy) <= 300
    assert len(entry.spark) == SPARK_POINTS
    assert max(v for v in entry.spark if v is not None) == 1e6  # no spike is lost
    assert entry.spark[-1] is None


def test_an_ending_is_told(tmp_path: Path) -> None:
    with RunWriter(tmp_path / "good.db"):
        pass
    with RunWriter(tmp_path / "bad.db") as writer:
        writer.update_info(exit="ValueError")
    writer = RunWriter(tmp_path / "open.db")
    writer.flush()
    try:
        states = [read(tmp_path / f"{name}.db")[0].state for name in ("good", "bad", "open")]
    finally:
        writer.close()
    assert states == ["ended", "failed", "running"]


def test_what_is_no_run_is_a_row_too(tmp_path: Path) -> None:
    path = tmp_path / "noise.db"
    path.write_bytes(b"SQLite format 3\x00" + bytes(500))
    entry, run = read(path)
    assert run is None
    assert entry.state == "unreadable"
    assert str(tmp_path) not in entry.sentence
