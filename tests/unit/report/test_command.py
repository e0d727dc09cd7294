"""`steadygrad report` as it is typed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from steadygrad.cli import group
from steadygrad.runlog import RunWriter, StepRecord, TensorInfo


@pytest.fixture
def run_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    with RunWriter("run.db") as writer:
        ids = writer.add_tensors([TensorInfo("w", (2,), "float32")])
        for step in range(60):
            writer.write_step(StepRecord(step, loss=1.0, norm=2.0), ids, [2.0], [1.5], [0], [0])
    return "run.db"


def typed(*arguments: str) -> Any:
    return CliRunner().invoke(group, ["report", *arguments])


def test_it_prints_the_path_of_the_page(run_file: str) -> None:
    done = typed(run_file)
    assert done.exit_code == 0, done.output
    assert done.stdout == f"{Path('report.html').absolute()}\n"
    assert Path("report.html").stat().st_size > 1e6
    assert json.loads(Path("report.json").read_text())["format"] == 1


def test_a_second_time_needs_force(run_file: str) -> None:
    Path("report.html").write_text("mine")
    refused = typed(run_file)
    assert refused.exit_code == 2
    assert "--force" in refused.output
    assert Path("report.html").read_text() == "mine"
    assert typed(run_file, "--force").exit_code == 0


def test_json_goes_to_standard_output_and_writes_nothing(run_file: str) -> None:
    done = typed(run_file, "--json")
    assert json.loads(done.stdout)["runs"][0]["name"] == "run"
    assert not Path("report.html").exists()
    assert not Path("report.json").exists()


def test_the_terminal_view_writes_nothing(run_file: str) -> None:
    done = typed(run_file, "--terminal")
    assert done.exit_code == 0
    assert "Gradient norm" in done.stdout
    assert not Path("report.html").exists()


def test_terminal_and_json_exclude_each_other(run_file: str) -> None:
    done = typed(run_file, "--terminal", "--json")
    assert done.exit_code == 2
    assert "type one of them" in done.output


def test_a_file_that_is_no_run_is_named(run_file: str) -> None:
    Path("other.db").write_text("not a run")
    done = typed("other.db")
    assert done.exit_code != 0
    assert "other.db" in done.output
    assert not Path("report.html").exists()


def test_no_run_at_all_says_what_to_type() -> None:
    done = typed()
    assert done.exit_code == 2
    assert "steadygrad run train.py" in done.output
