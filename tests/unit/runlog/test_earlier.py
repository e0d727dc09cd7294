"""A job that its launcher starts again goes on in the file of its last start."""

from __future__ import annotations

import os
from pathlib import Path

import click
import numpy as np
import pytest

from steadygrad import diagnose
from steadygrad.cli.run import _output
from steadygrad.live.session import open_writer
from steadygrad.recovery.events import events_of
from steadygrad.rules.evidence.view import View
from steadygrad.runlog import RunWriter, StepRecord, TensorInfo, open_run
from steadygrad.runlog.continuing import file_of_job
from steadygrad.runlog.encode import RELATIVE_ERROR


def start(path: Path, steps: list[int], goes_on: bool = True, **facts: object) -> None:
    """One start of a job, with two tensors of which the second is new in each start but the first.

    Args:
        path: of the run file.
        steps: as this start numbers them; a norm is the number of a step and a half.
        goes_on: an earlier start has left the file.
        facts: what it says at its end.
    """
    with RunWriter(path, goes_on=goes_on) as writer:
        ids = writer.add_tensors([TensorInfo("w", (4,))])
        other = writer.add_tensors([TensorInfo(f"new{len(steps)}", (2,), optimizer=1)])
        writer.write_sample("weight_norm", steps[0], ids, [7.0])
        for step in steps:
            norm = step + 0.5
            record = StepRecord(step, norm=norm, loss=1.0)
            writer.write_step(record, ids, [norm], [norm], [0], [0])
            writer.write_event("ranks", {"step": [step, step], "rank": [0, 1], "optimizer": 0})
        one = StepRecord(steps[0], norm=1.0, optimizer=1)
        writer.write_step(one, other, [1.0], [1.0], [0], [0])
        writer.update_info(**facts)


def test_steps_are_numbered_on_and_the_rules_see_what_the_weights_hold(tmp_path: Path) -> None:
    path = tmp_path / "run.db"
    start(path, [0, 1, 2], goes_on=False, exit="ValueError")
    start(path, [2, 3])  # from a checkpoint that knew the number of the step
    run = open_run(path)
    of_first = run.steps["optimizer"] == 0
    assert run.steps["step"][of_first].tolist() == [0, 1, 2, 3, 4]
    assert run.steps["norm"][of_first].tolist() == [0.5, 1.5, 2.5, 2.5, 3.5]
    of_w = np.asarray(run.tensor_norms)[of_first, 0]
    np.testing.assert_allclose(of_w, run.steps["norm"][of_first], rtol=1.01 * RELATIVE_ERROR)
    assert [tensor.name for tensor in run.tensors] == ["w", "new3", "new2"]
    assert View(run, 0).step.tolist() == [0, 1, 3, 4]
    assert "exit" not in run.info, "it is how the start before ended"
    start(path, [0, 1])  # anew
    run = open_run(path)
    assert [str(act) for act in events_of(run.events) if act.optimizer == 0] == [
        "step 2: ended by ValueError: restart to step 2",
        "step 4: ended: restart to step 0",
    ]
    assert (run.info["restart"], len(run.tensors)) == (2, 3)
    assert View(run, 0).step.tolist() == [5, 6]
    assert [event.data["step"] for event in run.events if event.kind == "ranks"] == [
        [step, step] for step in range(7)
    ]
    assert run.samples("weight_norm")[0].tolist() == [0, 3, 5]
    findings = [f for f in diagnose(run) if f.id == "SG206"]
    assert findings
    assert all("started the job again 2 times" in f.title for f in findings)


def test_only_an_earlier_start_of_the_same_job_is_gone_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "run.db"
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "a")
    start(path, [0], goes_on=False)
    assert file_of_job([path]) == "", "this process wrote it: a second run, and no restart"
    process = os.getpid()
    monkeypatch.setattr(os, "getpid", lambda: process + 1)
    assert file_of_job([tmp_path / "no.db", path]) == str(path)
    assert _output(str(path), force=False) == str(path), "also on one rank, that others left alone"
    with open_writer(path) as writer:
        assert file_of_job([path]) == "", "it is open"
    assert writer.info["restart"] == 1
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "b")
    assert file_of_job([path]) == ""
    with pytest.raises(click.UsageError, match="exists already"):
        _output(str(path), force=False)
    monkeypatch.delenv("TORCHELASTIC_RUN_ID")
    assert file_of_job([path]) == ""
    (tmp_path / "text.db").write_text("no run")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "b")
    assert file_of_job([tmp_path / "text.db"]) == ""
