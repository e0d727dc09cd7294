"""`steadygrad run` under torchrun: norms on record are those before the script's own clip calls."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from steadygrad.runlog import open_run


def test_norms_on_record_are_those_before_the_clip_call_on_every_rank(tmp_path):
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    observed = ["-m", "steadygrad", "run", "--out", "run.db"]
    script = str(Path(__file__).with_name("script.py"))
    done = subprocess.run(
        [sys.executable, *launcher, *observed, script],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    expected = json.loads(done.stdout.splitlines()[-1])
    for rank in (0, 1):
        run = open_run(tmp_path / f"run-rank{rank}.db")
        assert "troubles" not in run.info
        for optimizer, norms in enumerate(expected):
            own = run.steps["optimizer"] == optimizer
            assert run.steps["norm"][own] == pytest.approx(norms, rel=1e-5)
            assert np.all(run.steps["coef"][own] < 0.5)
    seen = [e.data for e in open_run(tmp_path / "run-rank0.db").events if e.kind == "ranks"]
    assert {rank for data in seen for rank in data["rank"]} == {0, 1}
