"""Arrays over several devices: sharded by JAX itself, and inside `shard_map`."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize("devices", [8])
def test_one_norm_over_all_devices(devices):
    flags = f"--xla_force_host_platform_device_count={devices}"
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("sharded.py")), str(devices)],
        env={**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    seen = json.loads(done.stdout)
    assert seen["devices"] == devices
    assert seen["auto"] == pytest.approx(0, abs=1e-6)
    for norm, after in seen["manual"].values():
        assert norm == pytest.approx(0, abs=1e-6)
        assert after == pytest.approx(0, abs=1e-6)
    for norm, action, skipped, still in seen["guarded"].values():
        assert norm == pytest.approx(0, abs=1e-6)
        assert (action, skipped, still) == (1, 2, True)
