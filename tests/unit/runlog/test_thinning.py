"""A long run, thinned: the rows that matter are there, and are the run's own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from steadygrad.runlog import Run, RunWriter, StepRecord, TensorInfo, open_run, thinning
from steadygrad.runlog.thinning import LANDMARKS, thinned


def long_run(steps: int, **info: object) -> Run:
    norms = 1.0 + np.arange(steps)
    return Run.from_arrays(
        steps={"norm": norms, "step": np.arange(steps)},
        tensors=["a", "b"],
        tensor_norms=np.stack([norms, 2 * norms], axis=1),
        info=info,
    )


def test_a_short_run_is_itself() -> None:
    run = long_run(500)
    assert thinned(run) is run


@pytest.mark.parametrize("steps", [thinning.LONG + 1, 1_000_000])
def test_a_long_run_keeps_its_ends_and_its_landmarks(steps: int) -> None:
    marked = {"first_nonfinite": 70_007, "largest_norm": steps - 50_000, "odd": "text", "far": -5}
    run = thinned(long_run(steps, **{LANDMARKS: marked}))
    assert len(run) < 75_000
    step = run.steps["step"]
    assert (np.diff(step) > 0).all()
    assert {0, thinning.END - 1, steps - thinning.END, steps - 1} <= set(step.tolist())
    assert {70_007, 70_300, steps - 50_000} <= set(step.tolist())
    rows = np.array([0, 25_000, len(run) - 1])
    assert run.tensor_rows(rows, [1])[:, 0].tolist() == (2.0 + 2 * step[rows]).tolist()
    assert len(run.step_rows(slice(3, 3))) == 0


def test_the_recording_notes_the_landmarks(tmp_path: Path) -> None:
    with RunWriter(tmp_path / "run.db") as writer:
        ids = np.array(writer.add_tensors([TensorInfo("w", (3,))]))
        for step, norm in enumerate([1.0, 2.0, 9.0, np.inf, 3.0, np.nan]):
            writer.write_step(StepRecord(step, norm=norm), ids, [norm], [1.0], [0], [0])
            if step == 2:
                writer.flush()
    assert open_run(tmp_path / "run.db").info[LANDMARKS] == {
        "first_nonfinite": 3,
        "largest_norm": 2,
    }
