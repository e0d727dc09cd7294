"""A folder's runs: what is drawn of a long one before its rules have been applied."""

from __future__ import annotations

from pathlib import Path

import pytest

from steadygrad.runlog import RunWriter, StepRecord, TensorInfo, thinning
from steadygrad.serve import folder as folders
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
    first, before = folder.report((key,)), folder.stamps((key,))
    assert first["runs"][0]["verdict"]["word"] == "Not judged yet"
    assert first["runs"][0]["findings"] == []
    assert first["runs"][0]["series"][0]
    assert "until the rules have been applied" in first["notes"][0]
    folder._judge(row)
    assert folder.stamps((key,)) != before  # so the page asks again
    told = folder.report((key,))["runs"][0]
    assert told["verdict"]["word"] == row.entry.word != "Not judged yet"
    assert told["thresholds"]
