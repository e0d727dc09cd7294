"""Real processes over gloo on this machine, started once for all tests of this folder."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

collect_ignore = ["script.py"]  # run by torchrun, not imported


@pytest.fixture(scope="session")
def two_ranks(tmp_path_factory):
    """What every case of `ranks.py` returned: ``{case: (rank 0, rank 1)}``."""
    return _outcomes("ranks.py", 2, tmp_path_factory.mktemp("ranks"))


@pytest.fixture(scope="session")
def four_ranks(tmp_path_factory):
    """What every case of `engines.py` returned: ``{case: (rank 0, ..., rank 3)}``."""
    return _outcomes("engines.py", 4, tmp_path_factory.mktemp("engines"))


def _outcomes(script, count, folder):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    started = [_start(script, rank, port, folder) for rank in range(count)]
    try:
        ended = [process.communicate(timeout=840)[0][-2000:] for process in started]
    finally:  # where one fails or hangs, the others wait for it for ever
        for process in started:
            with process:
                process.kill()
    assert [process.returncode for process in started] == [0] * count, ended
    ranks = [json.loads((folder / f"{rank}.json").read_text()) for rank in range(count)]
    return {case: tuple(rank[case] for rank in ranks) for case in ranks[0]}


def _start(name, rank, port, folder):
    script = Path(__file__).with_name(name)
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, str(script), str(rank), str(folder / f"{rank}.json")],
        env={**os.environ, **place},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
