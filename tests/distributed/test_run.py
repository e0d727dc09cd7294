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


def test_norms_on_record_are_those_before_the_clip_call_of_all_ranks(tmp_path):
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
    assert [path.name for path in tmp_path.glob("*.db")] == ["run.db"]
    run = open_run(tmp_path / "run.db")
    assert "troubles" not in run.info
    assert run.info["ranks"] == 2
    for optimizer, norms in enumerate(expected):
        own = run.steps["optimizer"] == optimizer
        assert run.steps["norm"][own] == pytest.approx(norms, rel=1e-5)
        assert np.all(run.steps["coef"][own] < 0.5)
        seen = [
            e.data for e in run.events if e.kind == "ranks" and e.data["optimizer"] == optimizer
        ]
        rows = [
            (step, rank, own, norm)
            for d in seen
            for step, rank, own, norm in zip(
                d["step"], d["rank"], d["own_norm"], d["norm"], strict=True
            )
        ]
        assert sorted(row[:2] for row in rows) == [(s, r) for s in range(3) for r in (0, 1)]
        for step in range(3):
            pieces = [row[2] for row in rows if row[0] == step]
            assert max(pieces) <= norms[step] * (1 + 1e-6)  # a piece is no larger than the whole
            if optimizer in (0, 3):  # cut into pieces that share nothing
                assert np.hypot(*pieces) == pytest.approx(norms[step], rel=1e-5)
