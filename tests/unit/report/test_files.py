"""Writing: two files, whole or not at all, never over someone's work unasked."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from steadygrad.errors import UsageError
from steadygrad.report import write_report
from steadygrad.runlog import Run, RunWriter, StepRecord, TensorInfo


def test_the_twin_holds_what_the_page_draws(a_run: Callable[..., Run], tmp_path: Path) -> None:
    page = write_report([a_run(nan_from=300)], tmp_path / "r.html")
    text = page.read_text(encoding="utf-8")
    inside = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    assert inside is not None
    assert json.loads(inside.group(1)) == json.loads((tmp_path / "r.json").read_text())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["r.html", "r.json"]


@pytest.mark.parametrize("there", ["r.html", "r.json"])
def test_a_file_that_is_there_stays(a_run: Callable[..., Run], tmp_path: Path, there: str) -> None:
    (tmp_path / there).write_text("mine")
    with pytest.raises(UsageError, match=re.escape(there) + ".*--force"):
        write_report([a_run()], tmp_path / "r.html")
    assert (tmp_path / there).read_text() == "mine"
    assert len(list(tmp_path.iterdir())) == 1
    write_report([a_run()], tmp_path / "r.html", force=True)
    assert (tmp_path / there).read_text() != "mine"


def test_a_missing_folder_and_a_wrong_ending_say_what_to_type(
    a_run: Callable[..., Run], tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="no folder"):
        write_report([a_run()], tmp_path / "nowhere" / "r.html")
    with pytest.raises(UsageError, match=r"-o r\.html"):
        write_report([a_run()], tmp_path / "r.pdf")


def test_a_run_file_is_read_by_its_path(tmp_path: Path) -> None:
    with RunWriter(tmp_path / "mine.db") as writer:
        ids = writer.add_tensors([TensorInfo("w", (2,), "float32")])
        for step in range(60):
            writer.write_step(StepRecord(step, loss=1.0, norm=2.0), ids, [2.0], [1.5], [0], [0])
    page = write_report([tmp_path / "mine.db"], tmp_path / "r.html")
    told = json.loads((tmp_path / "r.json").read_text())
    assert told["runs"][0]["name"] == "mine"
    assert told["runs"][0]["figures"][0]["value"] == "60"
    assert "mine" in page.read_text(encoding="utf-8")
