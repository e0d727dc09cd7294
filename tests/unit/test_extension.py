"""A file of each kind that is put into its folder is found everywhere: no list is edited.

The package is copied, files are added to the copy, and other processes use it: a clipping method,
a rule, a check of sources, a logger and a subcommand.
"""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
import types
from pathlib import Path

import pytest

import steadygrad

ROOT = Path(__file__).parents[2]

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

CHECK = '''
"""SG799: found in every source."""

from steadygrad.lint.check import Check, at
from steadygrad.lint.diagnostic import Severity


def find(module):
    yield at(module.tree.body[0], "SG799", Severity.INFO, "A first line.")


CHECK = Check("SG799", "a first line", "there is one", "nothing", find, words="x = ")
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

SUBCOMMAND = '''
"""`steadygrad greet`."""

import click


@click.command()
def command():
    """Greet the caller."""
    click.echo("Good day.")
'''

FILES = {
    "policies/methods/halving.py": METHOD,
    "rules/checks/sg499_everyday.py": RULE,
    "rules/pages/SG499.md": "# SG499: an everyday matter\n\nIt is.\n",
    "lint/checks/sg799_first_line.py": CHECK,
    "lint/pages/SG799.md": "# SG799: a first line\n\nThere is one.\n",
    "sinks/loggers/counting.py": LOGGER,
    "cli/greet.py": SUBCOMMAND,
}

USE = """
import contextlib, io, sys
import numpy as np
import steadygrad
from steadygrad import cli
from steadygrad.policies import Halving, examples, parse
from steadygrad.runlog import RunWriter, StepRecord, TensorInfo
from steadygrad.sinks import open_sink

assert parse("halving:3.0") == Halving(3.0) and parse("skip+halving").usual_clip_rate == 1.0
assert parse("{head.*: halving, *: norm:1.0}").spec().count("halving") == 1
assert "halving:2.0" in examples()
for policy in ("halving", "norm:1.0"):
    path = f"{policy[:4]}.db"
    with RunWriter(path, info={"policy": policy}) as run:
        run.add_sink(open_sink(f"counting:{policy[:4]}.live"))
        ids = run.add_tensors([TensorInfo("w", (4,), "float32", "Linear", 0)])
        for step in range(80):
            norm = 4.0 + step % 3
            record = StepRecord(step, norm=norm, loss=1.0, threshold=1.0, coef=0.5, action="clip")
            run.write_step(record, np.array(ids), [norm], [norm], [0], [0])
    print(policy, *(f.id for f in steadygrad.diagnose(path)))

open("source.py", "w").write("x = 1\\n")
for words in (
    ["--help"],
    ["greet"],
    ["explain"],
    ["explain", "SG499"],
    ["explain", "SG799"],
    ["lint", "source.py"],
    ["lint", "--format", "sarif", "source.py"],
    ["export", "--help"],
    ["export", "norm.db", "--to", "counting"],
    ["run", "--clip", "no-such-method", "source.py"],
):
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            sys.argv = ["steadygrad", *words]
            cli.main()
        except SystemExit:
            pass
    print("@@@" + " ".join(words), said.getvalue(), sep="\\n")
"""

SEEN_BY = {
    "--help": "greet",
    "greet": "Good day.",
    "explain": "SG499  an everyday matter",
    "explain SG499": "It is.",
    "explain SG799": "There is one.",
    "lint source.py": "SG799",
    "lint --format sarif source.py": '"SG799"',
    "export --help": "counting",
    "run --clip no-such-method source.py": "halving",
}
"""Part of what each command says."""


@pytest.fixture(scope="module")
def extended(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a copy of the package, and files of our own in it."""
    folder = tmp_path_factory.mktemp("extended")
    package = folder / "steadygrad"
    shutil.copytree(
        Path(steadygrad.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__")
    )
    for name, source in FILES.items():
        (package / name).write_text(source)
    return folder


def python(folder: Path, *words: str) -> str:
    done = subprocess.run(
        [sys.executable, *words],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_what_is_in_its_folder_acts_and_is_named_by_every_command(extended: Path) -> None:
    rules, *answers = python(extended, "-c", USE).split("@@@")
    said = {words: text for words, _, text in (answer.partition("\n") for answer in answers)}
    method, fixed = (set(line.split()[1:]) for line in rules.splitlines())
    assert "SG499" in method & fixed
    assert "SG401" in fixed - method  # the method says that it clips every step by design
    for words, what in SEEN_BY.items():
        assert what in said[words], words
    assert (extended / "norm.count").read_text() == (extended / "norm.live").read_text() == "80"


def test_tests_of_all_methods_take_them_from_the_package() -> None:
    for name in ("unit/policies/test_methods.py", "conformance/test_policies_everywhere.py"):
        tree = ast.parse((ROOT / "tests" / name).read_text())
        values = [n.value for n in tree.body if isinstance(n, ast.Assign)]
        assert any(ast.unparse(value).startswith("[*examples(), ") for value in values), name


def test_the_documentation_has_a_page_of_each(
    extended: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, member in (
        ("mkdocs.config.defaults", "MkDocsConfig"),
        ("mkdocs.structure.files", "File"),
        ("mkdocs.structure.files", "Files"),
        ("mkdocs.structure.pages", "Page"),
    ):  # what builds the site is in no environment of tests
        module = sys.modules.get(name) or types.ModuleType(name)
        monkeypatch.setattr(module, member, object, raising=False)
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    import docs_hooks

    monkeypatch.setattr(docs_hooks, "PACKAGE", extended / "steadygrad")
    made = dict(docs_hooks.pages())
    assert "methods.halving.Halving" in made["methods/Halving.md"]
    for page, room in (("Halving", "methods"), ("SG499", "rules"), ("SG799", "lint")):
        assert f"{page}.md" in made[f"{room}/index.md"]
        assert f"{room}/{page}.md" in made


def test_what_was_added_is_not_here() -> None:
    from steadygrad.lint import CHECKS
    from steadygrad.policies import REGISTRY
    from steadygrad.sinks.names import formats

    assert "halving" not in REGISTRY
    assert "counting" not in formats()
    assert "SG799" not in CHECKS
