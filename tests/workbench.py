"""A folder with scripts in it, which run by plain Python and through `steadygrad`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

Process = subprocess.CompletedProcess[str]


class Forks:
    """Runs Python in forks of a process with modules loaded (see `forks.py`), until it is left."""

    def __init__(self, *modules: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("forks.py")), *modules],
            env={**os.environ, "PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.count = 0

    def __enter__(self) -> Forks:
        return self

    def __exit__(self, *exception: object) -> None:
        with self.process:  # which closes its input, and so ends it
            pass

    def run(self, words: list[str], folder: Path, environment: dict[str, str]) -> Process:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.count += 1
        stem = folder.with_name(f"{folder.name}.{self.count}")
        request = json.dumps([words, str(folder), environment, str(stem)])
        print(request, file=self.process.stdin, flush=True)
        code = int(self.process.stdout.readline())
        out, err = (Path(f"{stem}.{name}").read_text() for name in ("out", "err"))
        return Process(words, code, out, err)


class Workbench:
    """A folder with scripts in it."""

    def __init__(self, folder: Path, forks: Forks | None = None) -> None:
        """With ``forks``, what runs is a fork, and no process of its own."""
        folder.mkdir(exist_ok=True)
        self.folder = folder
        self.forks = forks
        self.environment = {**os.environ, "PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1"}

    def write(self, name: str, code: str) -> str:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(code)
        return name

    def python(self, *words: str, cwd: str = "") -> Process:
        return self._start(list(words), cwd)

    def steadygrad(self, *words: str, cwd: str = "") -> Process:
        return self._start(["-m", "steadygrad", *words], cwd)

    def both(self, *words: str, cwd: str = "") -> tuple[Process, Process]:
        """The same script plainly and observed, the latter without our last words."""
        plain = self.python(*words, cwd=cwd)
        return plain, self.steadygrad("run", "-q", "--force", "--out", "run.db", *words, cwd=cwd)

    def run_file(self, name: str = "run.db") -> str:
        return str(self.folder / name)

    def _start(self, words: list[str], cwd: str) -> Process:
        if self.forks is not None:
            return self.forks.run(words, self.folder / cwd, self.environment)
        return subprocess.run(
            [sys.executable, *words],
            cwd=self.folder / cwd,
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=240,
        )
