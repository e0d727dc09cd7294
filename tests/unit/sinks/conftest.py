"""A short run with everything a logger must show: a NaN, an inf, a clipped step, a new tensor."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest

from steadygrad.runlog import Run, RunWriter, StepRecord, TensorInfo, open_run
from steadygrad.sinks import Sink, record

STEPS = 30
BROKEN = 7


def train(writer: RunWriter) -> None:
    """30 steps of two tensors; step 7 is broken, step 9 is clipped, loss and lr are known."""
    ids = writer.add_tensors([TensorInfo("fc.weight", (10, 10)), TensorInfo("fc.bias", (10,))])
    for step in range(STEPS):
        broken = step == BROKEN
        record_ = StepRecord(
            step,
            time=1e9 + step,
            loss=math.nan if broken else 1.0 / (step + 1),
            norm=math.nan if broken else 5.0,
            threshold=1.0,
            coef=0.2 if step == 9 else 1.0,
            action="skip" if broken else "clip" if step == 9 else "none",
            lr=0.1,
            nonfinite=3 if broken else 0,
        )
        norms = [math.nan, math.inf] if broken else [3.0, 4.0]
        writer.write_step(record_, ids, norms, [2.0, 2.0], [1, 2] if broken else [0, 0], [50, 0])
    writer.write_sample("weight_norm", 10, ids, [7.0, 8.0])


@pytest.fixture
def live(tmp_path: Path) -> Callable[..., Path]:
    """Train with a sink attached, and return the run file's path."""

    def run(*specs: str | Sink) -> Path:
        with record(tmp_path / "live.db", *specs) as writer:
            train(writer)
        return tmp_path / "live.db"

    return run


@pytest.fixture
def recorded(tmp_path: Path) -> Run:
    """The same training, recorded without a sink."""
    with RunWriter(tmp_path / "recorded.db") as writer:
        train(writer)
    return open_run(tmp_path / "recorded.db")
