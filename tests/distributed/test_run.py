"""`steadygrad run` under torchrun: norms on record are those before the script's own clip calls."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from steadygrad import diagnose
from steadygrad.recovery.events import events_of
from steadygrad.report.summary import summarise
from steadygrad.rules.evidence.view import View
from steadygrad.runlog import open_run


@pytest.fixture(scope="module")
def restarted(once):
    """`script.py` under torchrun: its true norms, and the run files; rank 1 dies in a first try."""
    return once("torchrun", train)


def train(folder):
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    observed = ["--max-restarts=1", "-m", "steadygrad", "run", "--out", "run.db"]
    script = str(Path(__file__).with_name("script.py"))
    done = subprocess.run(
        [sys.executable, *launcher, *observed, script],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert [path.name for path in folder.glob("*.db")] == ["run.db"]  # one of both starts
    return json.loads(done.stdout.splitlines()[-1]), folder


def rows_of(run, optimizer):
    """``(step, rank, own norm)`` of what the ranks told of an optimizer, in order."""
    events = [e.data for e in run.events if e.kind == "ranks" and e.data["optimizer"] == optimizer]
    columns = ("step", "rank", "own_norm")
    return sorted(row for e in events for row in zip(*map(e.get, columns), strict=True))


def first_of_second_start(run):
    """Number of its first step."""
    (act, *_) = events_of(run.events)
    assert (act.act, act.to_step) == ("restart", 0)
    # rank 0 waits for rank 1: either the launcher kills it first, or the lost connection does
    assert act.trigger in ("killed", "ended by RuntimeError")
    return act.step + 1


def test_norms_on_record_are_those_before_the_clip_call_of_all_ranks(restarted):
    expected, folder = restarted
    run = open_run(folder / "run.db")
    begin = first_of_second_start(run)
    assert "troubles" not in run.info
    assert (run.info["ranks"], run.info["restart"]) == (2, 1)
    # what is gathered for a pass belongs to the optimizer that holds its pieces
    assert run.info["loop"]["loose"] == []
    for optimizer, norms in enumerate(expected):
        own = (run.steps["optimizer"] == optimizer) & (run.steps["step"] >= begin)
        assert run.steps["step"][own].tolist() == [begin, begin + 1, begin + 2]
        assert View(run, optimizer).step.tolist() == [begin, begin + 1, begin + 2]
        assert run.steps["norm"][own] == pytest.approx(norms, rel=1e-5)
        assert np.all(run.steps["coef"][own] < 0.5)
        rows = [(step - begin, *rest) for step, *rest in rows_of(run, optimizer) if step >= begin]
        assert [row[:2] for row in rows] == [(s, r) for s in range(3) for r in (0, 1)]
        for step in range(3):
            pieces = [row[2] for row in rows if row[0] == step]
            assert max(pieces) <= norms[step] * (1 + 1e-6)  # a piece is no larger than the whole
            if optimizer in (0, 3):  # cut into pieces that share nothing
                assert np.hypot(*pieces) == pytest.approx(norms[step], rel=1e-5)


def test_a_rank_that_dies_leaves_what_it_told_in_a_file_that_opens(restarted):
    run = open_run(restarted[1] / "run.db")
    begin = first_of_second_start(run)
    assert run.steps["step"][:begin].tolist() == list(range(begin))
    assert begin >= 3
    told = [row[:2] for row in rows_of(run, 0) if row[0] < begin]
    assert {(0, 1), (1, 1)} <= set(told)
    assert max(step for step, rank in told if rank == 1) < 3


def test_what_reads_the_file_tells_of_the_restart_and_judges_the_last_start(restarted):
    run = open_run(restarted[1] / "run.db")
    (told,) = [f for f in diagnose(run) if f.id == "SG206"]
    assert (told.severity, dict(told.figures)["undone"]) == ("info", 0)
    assert "The launcher started the job again 1 time" in told.title
    begin = first_of_second_start(run)
    (curve, *_) = summarise(run, "run.db")["series"]
    assert curve["recovery"]["undone"] == [{"first": 0, "last": begin - 1}]
    assert "job started again" in curve["recovery"]["acts"][0]["text"]
