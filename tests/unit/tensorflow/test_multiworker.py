"""Two workers of MultiWorkerMirroredStrategy under `TF_CONFIG`, observed by `run`."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

from steadygrad.runlog import open_run

WORKER = Path(__file__).with_name("worker.py")
MAX_NORM, RATE, STEPS = 0.5, 0.125, 3


def start(index: int, addresses: list[str], folder: Path) -> subprocess.Popen[str]:
    cluster = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}}
    observed = ["-m", "steadygrad", "run", "--quiet", "--out", "run.db", str(WORKER)]
    return subprocess.Popen(
        [sys.executable, *observed],
        cwd=folder,
        env={**os.environ, "TF_CONFIG": json.dumps(cluster), "CUDA_VISIBLE_DEVICES": ""},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def free_addresses(count: int) -> list[str]:
    with ExitStack() as probes:
        sockets = [probes.enter_context(socket.socket()) for _ in range(count)]
        for probe in sockets:
            probe.bind(("127.0.0.1", 0))
        return [f"127.0.0.1:{probe.getsockname()[1]}" for probe in sockets]


def trained_alone() -> tuple[list[float], np.ndarray]:
    """Norms and the last weights, in float64."""
    rng = np.random.default_rng(0)
    x, y = (rng.normal(size=(8, n)).astype(np.float32).astype(float) for n in (3, 2))
    weight, norms = np.ones((3, 2)), []
    for _ in range(STEPS):
        gradient = 2 * x.T @ (x @ weight - y) / y.size
        norms.append(float(np.linalg.norm(gradient)))
        weight -= RATE * gradient * min(1.0, MAX_NORM / norms[-1])
    return norms, weight


def test_two_workers_clip_by_the_norm_of_one_process_and_write_one_run_file(tmp_path: Path) -> None:
    addresses = free_addresses(2)
    both = [start(index, addresses, tmp_path) for index in (0, 1)]
    said = [process.communicate(timeout=240) for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    first, second = (json.loads(out.splitlines()[-1]) for out, _ in said)
    assert first == second, "to the bit"
    norms, weight = trained_alone()
    # sums of 8 samples in another order, through 3 steps
    assert first["norms"] == pytest.approx(norms, rel=1e-6)
    np.testing.assert_allclose(first["weight"], weight, rtol=0, atol=8 * 3 * 2**-24)
    assert [path.name for path in tmp_path.glob("*.db")] == ["run.db"]
    run = open_run(tmp_path / "run.db")
    assert (run.info["ranks"], run.info["exit"]) == (2, "ok")
    (trouble,) = run.info["troubles"]  # what it clipped is divided by the number of workers
    assert "clip_by_global_norm returned went to no optimizer step as it was" in trouble
    # what the workers hand to Keras adds up to gradients that were clipped
    assert run.steps["norm"].tolist() == pytest.approx([MAX_NORM] * STEPS, rel=1e-6)
