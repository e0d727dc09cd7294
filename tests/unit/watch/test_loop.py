"""`steadygrad watch` in a real terminal (a pty of 80 by 24), on a run that is being written."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from steadygrad.runlog import RunWriter, StepRecord, TensorInfo

ESCAPES = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]|\x1b[()][A-Z0-9]|\x1b[=>]")


class Terminal:
    """A program on a pseudo-terminal, and what it has shown."""

    def __init__(self, *command: str) -> None:
        self.ours, self.theirs = pty.openpty()
        fcntl.ioctl(self.theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        self.before = termios.tcgetattr(self.theirs)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "steadygrad", *command],
            stdin=self.theirs, stdout=self.theirs, stderr=self.theirs, start_new_session=True,
            env={**os.environ, "TERM": "xterm-256color"},
        )  # fmt: skip
        self.shown = ""

    def until(self, pattern: str) -> re.Match[str]:
        """Wait for something to be shown after what was asked for last."""
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            text = ESCAPES.sub("", self.shown)
            if found := re.search(pattern, text):
                self.shown = ""
                return found
            if select.select([self.ours], [], [], 0.1)[0]:
                self.shown += os.read(self.ours, 65536).decode(errors="replace")
        raise AssertionError(f"{pattern!r} never came; shown: {self.shown[-3000:]!r}")

    def press(self, key: str) -> None:
        os.write(self.ours, key.encode())

    def end(self) -> int:
        """Wait for the program's end, reading on, since a full pty would stop it."""
        deadline = time.monotonic() + 60
        while self.process.poll() is None and time.monotonic() < deadline:
            if select.select([self.ours], [], [], 0.1)[0]:
                self.shown += os.read(self.ours, 65536).decode(errors="replace")
        return self.process.wait(1)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.ours)
        os.close(self.theirs)


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[RunWriter]:
    with RunWriter(tmp_path / "run.db") as out:
        yield out


def take_step(out: RunWriter, step: int, ids: list[int]) -> None:
    count = len(ids)
    norms = [float(1 + i) for i in ids]
    out.write_step(
        StepRecord(step, loss=1.0, norm=10.0, threshold=5.0, coef=0.5, action="clip"),
        ids, norms, norms, [0] * count, [0] * count,
    )  # fmt: skip
    out.flush()


def test_a_live_run_with_keys(writer: RunWriter) -> None:
    ids = writer.add_tensors([TensorInfo(f"layer{i}.weight", (10,)) for i in range(40)])
    take_step(writer, 0, ids)
    terminal = Terminal("watch", str(writer.path))
    try:
        terminal.until(r"run\.db\s+recording\s+1 steps")
        for step in range(1, 5):
            take_step(writer, step, ids)
        terminal.until(r"recording\s+5 steps")
        first = terminal.until(r"tensors by norm: 1-(\d+) of 40")
        terminal.press("n")
        second = terminal.until(r"tensors by norm: (\d+)-\d+ of 40")
        assert int(second[1]) == int(first[1]) + 1
        terminal.press("p")
        terminal.until(r"tensors by norm: 1-")
        terminal.press("q")
        assert terminal.end() == 0
        assert termios.tcgetattr(terminal.theirs) == terminal.before
        assert "\x1b[?1049l" in terminal.shown  # the screen from before is back
    finally:
        terminal.close()


def test_a_file_that_vanishes_leaves_the_last_frame(writer: RunWriter, tmp_path: Path) -> None:
    take_step(writer, 0, [])
    copy = tmp_path / "copy.db"
    writer.close()
    copy.write_bytes(writer.path.read_bytes())
    terminal = Terminal("watch", str(copy))
    try:
        terminal.until(r"copy\.db\s+ended \(ok\)\s+1 steps")
        copy.unlink()
        time.sleep(2.5)  # two frames
        terminal.until(r"copy\.db\s+ended")
        terminal.press("nq")  # typed faster than they are read
        assert terminal.end() == 0
    finally:
        terminal.close()


def test_ctrl_c_ends_quietly_and_restores_the_terminal(writer: RunWriter) -> None:
    take_step(writer, 0, [])
    terminal = Terminal("watch", str(writer.path))
    try:
        terminal.until("recording")
        terminal.process.send_signal(2)
        assert terminal.end() == 0
        assert "Traceback" not in terminal.shown
        assert termios.tcgetattr(terminal.theirs) == terminal.before
    finally:
        terminal.close()


def test_without_a_terminal_one_frame_is_printed(writer: RunWriter) -> None:
    take_step(writer, 0, writer.add_tensors([TensorInfo("fc.weight", (10,))]))
    command = [sys.executable, "-m", "steadygrad", "watch", str(writer.path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "1 steps" in done.stdout
    assert "fc.weight" in done.stdout
    assert "\x1b" not in done.stdout
    assert done.stderr == ""


def test_no_run_is_said_in_one_line(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "steadygrad", "watch", "--once", str(tmp_path / "none.db")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("Error: no run file at")
    assert "Traceback" not in done.stderr
