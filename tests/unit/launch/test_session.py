"""What is loaded before a script's first line, and for a script that trains nothing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

BEFORE_THE_SCRIPT = {
    "steadygrad",
    *(f"steadygrad.{name}" for name in ("_version", "cli", "cli.run", "errors", "invisible")),
    *(f"steadygrad.launch{name}" for name in ("", ".blame", ".children", ".imports", ".plan")),
    *(f"steadygrad.launch.{name}" for name in ("process", "session", "undoing")),
}
"""A start costs what is in here: it only grows for a reason."""

NOT_FOR_HELP = ("steadygrad.launch", "steadygrad.sinks.opening", "dataclasses", "json", "numpy")
NOT_FOR_A_START = {"hashlib", "json", "numpy", "random", "sqlite3"}


def imports(*arguments: str) -> tuple[str, set[str]]:
    """What a process of `steadygrad` prints, and the modules that it imports until its end."""
    command = [sys.executable, "-X", "importtime", "-m", "steadygrad", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    lines = [line for line in done.stderr.splitlines() if line.startswith("import time:")]
    return done.stdout, {line.rsplit("|", 1)[1].strip() for line in lines}


def test_a_start_loads_little_and_a_script_that_trains_nothing_no_numpy(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text("import sys; print(*sys.modules)")
    out = str(tmp_path / "run.db")
    printed, imported = imports("run", "--out", out, str(script))
    before = set(printed.split())
    ours = {name for name in before if name.startswith("steadygrad")}
    assert ours == BEFORE_THE_SCRIPT
    assert not before & NOT_FOR_A_START
    assert "steadygrad.launch.verdict" in imported  # the last words were said
    assert "numpy" not in imported


def test_help_loads_the_commands_and_little_else() -> None:
    printed, imported = imports("--help")
    assert "steadygrad.cli._arguments" in imported  # the commands themselves were
    assert not any(name.startswith(NOT_FOR_HELP) for name in imported)
    assert "serve" in printed
