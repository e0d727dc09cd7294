"""What is coded once is joined and cut: the file says the same whatever chunks it went through."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from steadygrad.runlog import StepRecord, TensorInfo, open_run
from steadygrad.runlog.items import StepItem, TensorsItem
from steadygrad.runlog.store import Store

SETS = [np.arange(3), np.arange(3, 5), np.array([0, 4])]
SIZE = 50


def step(number: int, rng: np.random.Generator) -> StepItem:
    """Of one of three sets of tensors; now and then with what 16 bits cannot hold."""
    ids = SETS[number % 7 % 3]
    norms, max_abs = rng.lognormal(0, 3, (2, len(ids)))
    nonfinite = np.zeros(len(ids))
    if number % 11 == 3:
        norms[0] = 1e-300
    if number % 13 == 5:
        max_abs[-1] = 3e200
    if number % 17 == 6:
        norms[1], nonfinite[1] = np.nan, 1 + number
    zeros = rng.integers(0, SIZE + 1, len(ids)).astype(float)
    record = StepRecord(number, float(number), norm=float(norms.sum()), nonfinite=nonfinite.sum())
    return StepItem(record, 0.0, ids, norms, max_abs, nonfinite, zeros)


@pytest.mark.parametrize(
    "batches", [[1] * 600, [600], [255, 2, 254, 1, 88], [300, 1, 299], [7] * 86]
)
def test_chunks_say_what_was_written(tmp_path: Path, batches: list[int]) -> None:
    rng = np.random.default_rng(0)
    steps = [step(number, rng) for number in range(600)]
    path = tmp_path / "run.db"
    path.touch()
    store = Store(path)
    store.write([TensorsItem(0, tuple(TensorInfo(str(k), (SIZE,)) for k in range(5)))])
    written = 0
    for size in batches:
        store.write(steps[written : written + size])
        written += size
    assert store.landmarks["first_nonfinite"] == 6
    store.finish()
    run = open_run(path)
    np.testing.assert_array_equal(run.steps.step, np.arange(600))
    expected = {
        name: np.full((600, 5), np.nan) for name in ("norms", "max_abs", "nonfinite", "zeros")
    }
    for row, item in enumerate(steps):
        for name, table in expected.items():
            table[row, item.tensor_ids] = getattr(item, name)
    np.testing.assert_allclose(run.tensor_norms, expected["norms"], rtol=1.5e-3)
    np.testing.assert_allclose(run.tensor_max_abs, expected["max_abs"], rtol=1.5e-3)
    np.testing.assert_array_equal(run.tensor_nonfinite, expected["nonfinite"])
    np.testing.assert_allclose(run.tensor_zeros, expected["zeros"] / SIZE, atol=2e-5)
