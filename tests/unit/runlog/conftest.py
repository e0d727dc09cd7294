"""Runs made of known figures, and Python processes that can be killed."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from steadygrad.runlog import RunWriter, StepRecord, TensorInfo

Figures = dict[str, np.ndarray]


@pytest.fixture
def figures() -> Callable[..., Figures]:
    """Gradient figures as a training has them: a level a tensor, 30 % noise, few zeros."""

    def make(rows: int, tensors: int, seed: int = 0) -> Figures:
        rng = np.random.default_rng(seed)
        level = np.exp(rng.normal(scale=3.0, size=tensors))
        norms = level * np.exp(rng.normal(scale=0.3, size=(rows, tensors)))
        return {
            "norms": norms,
            "max_abs": 0.1 * norms * np.exp(rng.normal(scale=0.1, size=(rows, tensors))),
            "nonfinite": np.zeros((rows, tensors), np.int64),
            "zeros": rng.integers(0, 50, size=(rows, tensors)),
        }

    return make


@pytest.fixture
def record_run(tmp_path: Path) -> Callable[..., Path]:
    """Write a run of given figures and return its path."""

    def write(given: Figures, name: str = "run.db", **options: Any) -> Path:
        path = tmp_path / name
        rows, count = given["norms"].shape
        with RunWriter(path, **options) as writer:
            ids = writer.add_tensors(
                [TensorInfo(f"layer{i}.weight", (10, 100)) for i in range(count)]
            )
            for row in range(rows):
                total = float(np.linalg.norm(given["norms"][row]))
                writer.write_step(
                    StepRecord(row, time=1e9 + row, loss=1.0 / (row + 1), norm=total),
                    ids,
                    *(given[k][row] for k in ("norms", "max_abs", "nonfinite", "zeros")),
                )
        return path

    return write


@pytest.fixture
def start_python(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start a Python process with a script given as text; killed when the test ends."""
    started: list[subprocess.Popen[str]] = []

    def start(script: str, *arguments: Any) -> subprocess.Popen[str]:
        file = tmp_path / f"script{len(started)}.py"
        file.write_text(textwrap.dedent(script))
        process = subprocess.Popen(
            [sys.executable, str(file), *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()
