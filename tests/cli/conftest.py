"""Runs a script twice, by plain Python and through `steadygrad run`, as real processes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

Process = subprocess.CompletedProcess[str]


class Workbench:
    """A folder with scripts in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = {**os.environ, "PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1"}

    def write(self, name: str, code: str) -> str:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(code)
        return name

    def python(self, *words: str, cwd: str = "") -> Process:
        return self._start([sys.executable, *words], cwd)

    def steadygrad(self, *words: str, cwd: str = "") -> Process:
        return self._start([sys.executable, "-m", "steadygrad", *words], cwd)

    def both(self, *words: str, cwd: str = "") -> tuple[Process, Process]:
        """The same script plainly and observed, the latter without our last words."""
        plain = self.python(*words, cwd=cwd)
        return plain, self.steadygrad("run", "-q", "--force", "--out", "run.db", *words, cwd=cwd)

    def run_file(self, name: str = "run.db") -> str:
        return str(self.folder / name)

    def _start(self, words: list[str], cwd: str) -> Process:
        return subprocess.run(
            words,
            cwd=self.folder / cwd,
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=240,
        )


@pytest.fixture(scope="session")
def workbench() -> type[Workbench]:
    """For fixtures that outlive a test: makes a workbench of a folder."""
    return Workbench


@pytest.fixture
def bench(tmp_path: Path) -> Workbench:
    return Workbench(tmp_path)


@pytest.fixture
def same() -> Callable[[tuple[Process, Process]], Process]:
    """Asserts that two processes did the same for the outside; returns the first."""

    def compare(pair: tuple[Process, Process]) -> Process:
        plain, observed = pair
        assert observed.stdout == plain.stdout
        assert observed.stderr == plain.stderr
        assert observed.returncode == plain.returncode
        return plain

    return compare
