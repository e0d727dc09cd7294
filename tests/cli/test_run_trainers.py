"""Trainers under plain `steadygrad run`, without a line of ours: seen, unchanged, well understood.

The script is imported here too and trains unobserved in this process, which
spares a second process the imports.
"""

from __future__ import annotations

import gc
import importlib.util
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from accelerate.state import AcceleratorState, GradientState

import steadygrad
from steadygrad.runlog import Run

pytestmark = [
    # Lightning's advice on data loaders, and its own use of retired torch calls
    pytest.mark.filterwarnings("ignore::UserWarning:lightning.*"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:lightning.*"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning:torch.utils.data"),
]

SCRIPT = Path(__file__).with_name("trainers_script.py")
NAMES = ("huggingface", "lightning", "accelerate", "plain", "misplaced")
STEPS = 24
MISPLACED = {f"SG{number}" for number in range(404, 412)}


@pytest.fixture(scope="module")
def script() -> Iterator[ModuleType]:
    spec = importlib.util.spec_from_file_location("trainers_script", SCRIPT)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    AcceleratorState._reset_state(True)
    GradientState._reset_state()
    gc.collect()  # trainers and models hold each other; later tests look for models by gc


@pytest.fixture(scope="module")
def observed(workbench: Any, once: Any) -> tuple[Run, str]:
    """One observed process that trains by every trainer: each has an optimizer number."""

    def train(folder: Path) -> tuple[str, str]:
        bench = workbench(folder)
        done = bench.steadygrad("run", "-q", "--out", "run.db", str(SCRIPT), *NAMES)
        assert done.returncode == 0, done.stderr
        return bench.run_file(), done.stdout

    path, said = once("trainers", train)
    return steadygrad.open_run(path), said


@pytest.mark.parametrize("name", NAMES[:4])
def test_a_trainer_ends_with_the_same_weights(
    name: str, script: ModuleType, observed: tuple[Run, str], tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    assert f"{name} {script.digest(getattr(script, name)())}" in observed[1].splitlines()


@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_trainer_gives_the_run_that_a_plain_loop_gives(
    number: int, observed: tuple[Run, str]
) -> None:
    run = observed[0]
    theirs, plain = (run.steps[run.steps.optimizer == n] for n in (number, NAMES.index("plain")))
    assert len(theirs) == len(plain) == STEPS
    for column in ("step", "threshold", "action", "lr"):
        assert np.array_equal(theirs[column], plain[column]), column
    assert (plain.action == "clip").sum() > STEPS // 2  # the trainer's own threshold is at work
    # Accelerate sums two half batches: each figure differs by float32's rounding of their sums
    exact = NAMES[number] != "accelerate"
    for column in ("norm", "loss", "coef"):
        np.testing.assert_allclose(theirs[column], plain[column], rtol=1e-7 if exact else 1e-4)
    # the Trainer groups parameters by weight decay, hence another order
    shapes = [sorted(t.shape for t in run.tensors if t.optimizer == n) for n in (number, 3)]
    assert shapes[0] == shapes[1]


def test_a_trainers_clip_call_is_seen_and_not_called_misplaced(observed: tuple[Run, str]) -> None:
    run = observed[0]
    calls = run.info["clip_calls"]
    assert [[c["count"] for c in calls if c["optimizer"] == n] for n in range(4)] == [[STEPS]] * 4
    found = {f.optimizer for f in steadygrad.diagnose(run) if f.id in MISPLACED}
    assert found == {NAMES.index("misplaced")}
