"""What a step costs: bytes in the file, and memory over a long run."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

from steadygrad.runlog import RunWriter, StepRecord, TensorInfo, open_run

LIMIT = 1500  # bytes a step for 150 tensors, what the project promises
TENSORS = 150


def test_a_step_of_150_tensors_stays_under_the_limit(
    figures: Callable[..., dict[str, np.ndarray]], record_run: Callable[..., Path]
) -> None:
    rows = 2000
    path = record_run(figures(rows, TENSORS))
    assert path.stat().st_size / rows < LIMIT


def test_figures_without_any_pattern_stay_under_the_limit(record_run: Callable[..., Path]) -> None:
    rng, rows, shape = np.random.default_rng(0), 1000, (1000, TENSORS)
    worst = {
        "norms": np.exp2(rng.uniform(-140, 120, shape)),
        "max_abs": np.exp2(rng.uniform(-140, 120, shape)),
        "nonfinite": np.zeros(shape, np.int64),
        "zeros": rng.integers(0, 1001, shape),
    }
    assert record_run(worst).stat().st_size / rows < LIMIT


def test_a_ruined_run_stays_under_the_limit(record_run: Callable[..., Path]) -> None:
    shape = (1000, TENSORS)
    ruined = {
        "norms": np.full(shape, np.nan),
        "max_abs": np.zeros(shape),
        "nonfinite": np.full(shape, 1000),
        "zeros": np.zeros(shape, np.int64),
    }
    path = record_run(ruined)
    assert path.stat().st_size / 1000 < LIMIT
    assert (open_run(path).tensor_nonfinite == 1000).all()


def test_a_slow_training_that_commits_every_step_stays_under_the_limit(
    tmp_path: Path, figures: Callable[..., dict[str, np.ndarray]]
) -> None:
    rows = 600
    given = figures(rows, TENSORS)
    with RunWriter(tmp_path / "run.db") as out:
        ids = out.add_tensors([TensorInfo(f"t{i}", (1000,)) for i in range(TENSORS)])
        for row in range(rows):
            out.write_step(StepRecord(row), ids, *(values[row] for values in given.values()))
            out.flush()
    assert (tmp_path / "run.db").stat().st_size / rows < LIMIT


LONG = """
import resource, sys
import numpy as np
from steadygrad.runlog import RunWriter, StepRecord, TensorInfo

writer = RunWriter(sys.argv[1])
ids = np.array(writer.add_tensors([TensorInfo("t", (10,))]))
norms, nothing = np.ones(1), np.zeros(1)
peaks = []
for part in range(4):
    for step in range(20_000):
        writer.write_step(StepRecord(step, norm=1.0), ids, norms, norms, nothing, nothing)
    writer.flush()
    peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
writer.close()
print(*peaks)
"""


def test_memory_does_not_grow_with_the_number_of_steps(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LONG, tmp_path / "run.db"],
        capture_output=True,
        text=True,
        check=True,
    )
    peaks = [int(megabytes) for megabytes in done.stdout.split()]
    # the queue is full after the first part; 60,000 more steps of 100 bytes would be 6 MB
    assert peaks[-1] - peaks[0] < 4, peaks
    assert len(open_run(tmp_path / "run.db")) == 80_000
