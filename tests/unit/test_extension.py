"""A method, a rule and a logger that are one new file each are found everywhere: no list is edited.

The package is copied, files are added to the copy, and other processes use it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import steadygrad

METHOD = '''
"""A method from elsewhere."""

from dataclasses import dataclass
from typing import ClassVar

from steadygrad.policies.base import Decision, Policy


@dataclass(frozen=True)
class Halving(Policy):
    """Halve every gradient."""

    name: ClassVar[str] = "halving"
    examples: ClassVar[tuple[str, ...]] = ("halving:2.0",)
    above: float = 1.0

    @property
    def usual_clip_rate(self):
        return 1.0

    def decide(self, xp, state, stats):
        one = xp.ones_like(stats.total_norm)
        return state, Decision(one * self.above, one * 0.5)
'''

RULE = '''
"""SG499: found in every run."""

from steadygrad.rules.base import Rule, finding


def check(view):
    yield finding(
        view, "SG499", "info", 0.9, "Always.", evidence=[], steps=[], tensors=[], causes=[],
        fixes=[], figures={},
    )


RULE = Rule("SG499", "an everyday matter", check)
'''

LOGGER = '''
"""A logger from elsewhere."""

from pathlib import Path

from steadygrad.sinks.base import Sink


class Counting(Sink):
    """Counts steps."""

    kind = "counting"
    suffix = ".count"

    def open(self, head):
        self.steps = 0

    def write(self, batch):
        self.steps += len(batch.steps)

    def close(self):
        Path(self.target).write_text(str(self.steps))


SINK = Counting
'''

DIAGNOSE = """
import sys
import numpy as np
import steadygrad
from steadygrad.policies import Halving, examples, parse
from steadygrad.runlog import RunWriter, StepRecord, TensorInfo

assert parse("halving:3.0") == Halving(3.0) and parse("skip+halving").usual_clip_rate == 1.0
assert "halving:2.0" in examples()
for policy in ("halving", "norm:1.0"):
    path = f"{policy[:4]}.db"
    with RunWriter(path, info={"policy": policy}) as run:
        ids = run.add_tensors([TensorInfo("w", (4,), "float32", "Linear", 0)])
        for step in range(80):
            norm = 4.0 + step % 3
            record = StepRecord(step, norm=norm, loss=1.0, threshold=1.0, coef=0.5, action="clip")
            run.write_step(record, np.array(ids), [norm], [norm], [0], [0])
    print(policy, *(f.id for f in steadygrad.diagnose(path)))
"""


@pytest.fixture(scope="module")
def extended(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a copy of the package, and a method, a rule and a logger of our own in it."""
    folder = tmp_path_factory.mktemp("extended")
    package = folder / "steadygrad"
    shutil.copytree(
        Path(steadygrad.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__")
    )
    (package / "policies/methods/halving.py").write_text(METHOD)
    (package / "rules/checks/sg499_everyday.py").write_text(RULE)
    (package / "sinks/loggers/counting.py").write_text(LOGGER)
    (package / "rules/pages/SG499.md").write_text("# SG499: an everyday matter\n\nIt is.\n")
    return folder


def python(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *words],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def test_a_new_method_and_a_new_rule_act(extended: Path) -> None:
    done = python(extended, "-c", DIAGNOSE)
    assert done.returncode == 0, done.stderr
    method, fixed = (set(line.split()[1:]) for line in done.stdout.splitlines())
    assert "SG499" in method & fixed
    assert "SG401" in fixed - method  # the method says that it clips every step by design
    done = python(extended, "-m", "steadygrad", "export", "norm.db", "--to", "counting")
    assert done.returncode == 0, done.stderr
    assert (extended / "norm.count").read_text() == "80"


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (("explain",), "SG499  an everyday matter"),
        (("explain", "SG499"), "It is."),
        (("run", "--clip", "no-such-method", "x.py"), "halving"),
        (("export", "x.db", "--to", "no-such-format"), "counting"),
    ],
)
def test_the_command_line_knows_them(extended: Path, words: tuple[str, ...], found: str) -> None:
    done = python(extended, "-m", "steadygrad", *words)
    assert found in done.stdout + done.stderr


def test_what_was_added_is_not_here() -> None:
    from steadygrad.policies import REGISTRY
    from steadygrad.sinks.names import formats

    assert "halving" not in REGISTRY
    assert "counting" not in formats()
