"""Real processes over gloo on this machine, started once for all tests of this folder."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

collect_ignore = ["script.py"]  # run by torchrun, not imported


@pytest.fixture(scope="session")
def two_ranks(once):
    """What every case of `ranks.py` returned: ``{case: (rank 0, rank 1)}``."""
    return once("ranks", lambda folder: _outcomes("ranks.py", 2, folder))


@pytest.fixture(scope="session")
def four_ranks(once):
    """What every case of `engines.py` returned: ``{case: (rank 0, ..., rank 3)}``."""
    return once("engines", lambda folder: _outcomes("engines.py", 4, folder))


def _outcomes(script, count, folder):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name(script)), str(folder)],
        env={**os.environ, **place},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    with process:
        try:
            said = process.communicate(timeout=840)[0]
        finally:  # of ranks that hang, too
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 0, said[-4000:].decode()
    ranks = [json.loads((folder / f"{rank}.json").read_text()) for rank in range(count)]
    return {case: tuple(rank[case] for rank in ranks) for case in ranks[0]}
