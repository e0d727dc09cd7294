"""Two real processes over gloo on this machine, started once for all tests of this folder."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def two_ranks(tmp_path_factory):
    """What every case of `ranks.py` returned: ``{case: (rank 0, rank 1)}``."""
    folder = tmp_path_factory.mktemp("ranks")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    started = [_start(rank, port, folder) for rank in (0, 1)]
    ended = [process.communicate(timeout=240) for process in started]
    assert [process.returncode for process in started] == [0, 0], ended
    first, second = (json.loads((folder / f"{rank}.json").read_text()) for rank in (0, 1))
    return {case: (first[case], second[case]) for case in first}


def _start(rank, port, folder):
    script = Path(__file__).with_name("ranks.py")
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, str(script), str(rank), str(folder / f"{rank}.json")],
        env={**os.environ, **place},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
