"""Arrays over several devices: sharded by JAX itself, and inside `shard_map`."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from steadygrad.runlog import open_run


def start(devices, *place, run="", every=1, observed=()):
    flags = f"--xla_force_host_platform_device_count={devices // every}"
    script = str(Path(__file__).with_name("sharded.py"))
    return subprocess.Popen(
        [sys.executable, *observed, script, str(devices), *place],
        env={**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "RUN": run},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def seen_by(process):
    said, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors[-3000:]
    return json.loads(said.splitlines()[-1])


def holds(seen, devices):
    assert seen["devices"] == devices
    assert seen["auto"] == pytest.approx(0, abs=1e-6)
    for norm, after in seen["manual"].values():
        assert norm == pytest.approx(0, abs=1e-6)
        assert after == pytest.approx(0, abs=1e-6)
    for norm, action, skipped, still in seen["guarded"].values():
        assert norm == pytest.approx(0, abs=1e-6)
        assert (action, skipped, still) == (1, 2, True)


def test_one_norm_over_all_devices():
    holds(seen_by(start(8)), 8)


def test_one_norm_and_one_record_over_two_processes(tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    run = str(tmp_path / "run.db")
    observed = ("-m", "steadygrad", "run", "-q", "--out", str(tmp_path / "observed.db"))
    both = [start(4, r, address, run=run, every=2, observed=observed) for r in ("0", "1")]
    for seen in list(map(seen_by, both)):
        holds(seen, 4)
        assert seen["plain"] == pytest.approx(0, abs=1e-6)
    assert sorted(path.name for path in tmp_path.glob("*.db")) == ["observed.db", "run.db"]
    assert open_run(run).steps["action"].tolist() == ["clip"]
    job = open_run(tmp_path / "observed.db")  # the plain step before its own clip, by `run`
    assert job.info["ranks"] == 2
    (trouble,) = job.info["troubles"]  # of the last steps, inside shard_map
    assert "shard_map" in trouble
    assert job.steps["norm"][0] == pytest.approx(seen["truth"] / 1e20, rel=1e-6)
