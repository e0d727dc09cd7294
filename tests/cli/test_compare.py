"""`steadygrad compare` on a real script, in processes of its own."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from steadygrad.runlog import open_run

SCRIPT = """
import math
import os
import signal
import torch

torch.manual_seed(5)
inputs = torch.randn(64, 4)
model = torch.nn.Linear(4, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.9)
for step in range(60):
    if step == 30 and os.path.exists("kill-once"):  # the test on a cluster makes it
        os.unlink("kill-once")
        os.kill(os.getppid(), signal.SIGKILL)
    optimizer.zero_grad()
    loss = (model(inputs) - 10 * inputs.sum(1, keepdim=True)).pow(4).mean()
    if not math.isfinite(loss.item()):
        raise FloatingPointError("the loss is not finite")
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 123.0)
    optimizer.step()
"""
CLIPS = ("--clip", "none", "--clip", "norm:1.0")


def compare(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "steadygrad", "compare", *CLIPS, "--seeds", "2", *options]
    return subprocess.run(
        [*command, "--out", "results", "train.py", "--width", "4", "--api-key", "Hunter2"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def finished(once: Any) -> tuple[Path, Any]:
    """A folder with a finished comparison, and what it printed."""

    def finish(folder: Path) -> tuple[Path, Any]:
        (folder / "train.py").write_text(SCRIPT)
        return folder, compare(folder)

    return once("compare", finish)


def test_a_failed_run_is_a_result(finished: tuple[Path, Any]) -> None:
    _, done = finished
    assert done.returncode == 0, done.stderr
    assert "norm:1.0 wins" in done.stdout
    assert "Diverged or failed: none (2 of 2)" in done.stdout
    assert "FloatingPointError: the loss is not finite" in done.stdout
    assert "4/4" in done.stderr


def test_results_as_json_and_page(finished: tuple[Path, Any]) -> None:
    folder, _ = finished
    told = json.loads((folder / "results" / "compare.json").read_text())
    none, one = told["policies"]
    assert (none["standing"], none["diverged"]) == ("diverged", 2)
    assert one["standing"] == "best"
    assert 0.1 < one["clip_rate"] < 1.0
    assert none["clip_rate"] == 0.0
    assert one["cosine"] == pytest.approx(1.0)
    first, second = (seed["final_loss"] for seed in one["seeds"])
    assert first != second, "the seeds come from outside, though the script sets its own"
    assert len(one["curve"]["step"]) == 60
    page = (folder / "results" / "compare.html").read_text()
    assert told["command"] == ["train.py", "--width", "4", "--api-key", "***"]
    files = [path for path in (folder / "results").iterdir() if path.is_file()]
    assert not [path for path in files if b"Hunter2" in path.read_bytes()]
    assert told["sentence"].split(";")[0] in page
    assert 'http-equiv="Content-Security-Policy"' in page
    assert (folder / "results" / "report.html").exists()


def test_starting_again_reuses_finished_cells(finished: tuple[Path, Any], tmp_path: Path) -> None:
    folder = tmp_path / "again"  # others may read the first meanwhile
    shutil.copytree(finished[0], folder)
    files = sorted((folder / "results").glob("*.db"))
    before = [path.stat().st_mtime_ns for path in files]
    (folder / "results" / "compare.json").unlink()
    again = compare(folder, "--json")
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout)["policies"][1]["standing"] == "best"
    assert "4 reused" in again.stderr
    assert [path.stat().st_mtime_ns for path in files] == before


def test_mistakes_say_what_to_type(tmp_path: Path) -> None:
    done = compare(tmp_path)
    assert done.returncode == 2
    assert "there is no script train.py" in done.stderr


@pytest.mark.timeout(900)  # a cluster starts slowly where others compute
def test_a_ray_cluster_comes_to_the_same_though_a_worker_is_killed(
    finished: tuple[Path, Any], tmp_path: Path
) -> None:
    local = finished[0] / "results"
    (tmp_path / "train.py").write_text(SCRIPT)
    (tmp_path / "kill-once").touch()
    done = compare(tmp_path, "--engine", "ray", "--jobs", "2", "--seeds", "1", "--json")
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "kill-once").exists(), "no worker was killed"
    assert done.stdout.startswith("{"), done.stdout[:300]
    ours, theirs = (
        [row["seeds"][0] for row in json.loads(text)["policies"]]
        for text in (done.stdout, (local / "compare.json").read_text())
    )
    for seed in (*ours, *theirs):
        assert seed.pop("seconds") > 0
    assert ours == theirs
    paths = sorted((tmp_path / "results").glob("*.db"))
    assert len(paths) == 2
    for path in paths:
        here, there = (open_run(each) for each in (local / path.name, path))
        assert len(here.steps) > 1
        for column in ("loss", "norm", "coef"):
            np.testing.assert_array_equal(here.steps[column], there.steps[column])


def test_a_cluster_that_does_not_answer_or_is_none_says_what_to_type(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(SCRIPT)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # nobody listens there
        done = compare(tmp_path, "--engine", f"ray:127.0.0.1:{taken.getsockname()[1]}")
    assert done.returncode == 2
    assert "no Ray cluster answers at 127.0.0.1" in done.stderr
    assert "ray start --head" in done.stderr
    done = compare(tmp_path, "--engine", "rya")
    assert "type --engine local, --engine ray or" in done.stderr
    (tmp_path / "ray.py").write_text("raise ModuleNotFoundError('not here', name='ray')")
    done = compare(tmp_path, "--engine", "ray")
    assert 'pip install "steadygrad[ray]"' in done.stderr
