"""Every block of the README and the documentation runs as it is written there, in order."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import metadata
from pathlib import Path

import pytest

from .pages import PAGES, ROOT, Block, blocks

SECONDS_A_PAGE = 900  # as in forking.py
LANGUAGES = ("python", "bash", "text", "toml", "yaml", "json", "bibtex")
COMMANDS = ("steadygrad", "python", "pip", "make", "$ ")
BLOCKS = [block for page in PAGES for block in blocks(page)]


REAL = ROOT / "docs" / "index.md"  # whose commands start as a user's do: a process each


class Forks:
    """Runs pages in forks of a process that has torch loaded; see `forking.py`."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("forking.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run_page(self, page: Path, folder: Path) -> tuple[int, str]:
        """Exit code and output; what a page started is gone afterwards."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        output = folder.with_name(f"{folder.name}.out")
        print(
            json.dumps([str(page), str(folder), str(output)]), file=self.process.stdin, flush=True
        )
        return int(self.process.stdout.readline()), output.read_text()


@pytest.fixture(scope="module")
def forks() -> Iterator[Forks]:
    forks = Forks()
    with forks.process:  # which closes its input, and so ends it
        yield forks


@pytest.mark.timeout(SECONDS_A_PAGE + 20)
@pytest.mark.parametrize(
    "page",
    [page for page in PAGES if page != REAL and any(block.is_run for block in blocks(page))],
    ids=lambda page: str(page.relative_to(ROOT)),
)
def test_the_page_runs(page: Path, tmp_path: Path, forks: Forks) -> None:
    code, output = forks.run_page(page, tmp_path)
    assert code == 0, output[-6000:]


def test_a_page_runs_with_processes_of_its_own(tmp_path: Path) -> None:
    assert any("steadygrad run" in block.code for block in blocks(REAL))
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("run_page.py")), str(REAL)],
        cwd=tmp_path,
        env={**os.environ, "HOME": str(tmp_path)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-6000:]


OUTPUT = "print(2.0)\n```\n\n<!-- output -->\n\n```text\n"


@pytest.mark.parametrize(
    ("code", "runs"),
    [
        ("```python\nassert False\n```\n", False),
        ("```bash\nsteadygrad report no-such-run.db\n```\n", False),
        (f"```python\n{OUTPUT}3.0\n```\n", False),
        (f"```python\n{OUTPUT}2.01\n```\n", True),
    ],
)
def test_a_block_that_fails_fails_its_page(
    code: str, runs: bool, tmp_path: Path, forks: Forks
) -> None:
    page = ROOT / "docs" / f"broken-{os.getpid()}.md"  # a page has to stand in the repository
    try:
        page.write_text(code)
        assert (forks.run_page(page, tmp_path)[0] == 0) == runs
    finally:
        page.unlink()


def names_a_test(reason: str) -> bool:
    """Whether a file of tests that exists is named."""
    named = re.search(r"tests/[\w/]+\.py", reason)
    return named is not None and (ROOT / named[0]).is_file()


def misuse(block: Block) -> str:
    """What is wrong with how a block is marked; empty where nothing is."""
    if block.reason and not block.reason.startswith("takes ") and not names_a_test(block.reason):
        return f"not run, and no test that does is named: {block.reason}"
    if block.language not in LANGUAGES:
        return f"its language is {block.language!r}; take one of {', '.join(LANGUAGES)}"
    first = block.code.lstrip().split("\n")[0]
    if block.language == "text" and first.startswith(COMMANDS) and "\n" not in block.code.strip():
        return "a command that calls itself text, so that it is not run"
    return ""


def test_no_block_escapes() -> None:
    assert {block.place: misuse(block) for block in BLOCKS if misuse(block)} == {}
    assert sum(block.is_run for block in BLOCKS) > 0.85 * sum(
        block.language in ("python", "bash") for block in BLOCKS
    )


def loose_ends(page: str, whole: list[str]) -> list[str]:
    """The fences and marks of a page that belong to none of its blocks."""
    for block in whole:
        page = page.replace(block, "", 1)
    return re.findall(r"^ *```.*|<!-- (?:not run|setup|output).*", page, re.MULTILINE)


def test_every_fence_and_every_mark_belongs_to_a_block() -> None:
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        assert loose_ends(text, [text[slice(*block.whole)] for block in blocks(page)]) == [], page


def test_a_loose_end_is_seen() -> None:
    assert loose_ends("<!-- output -->\nnorm 1\n```\n", []) == ["<!-- output -->", "```"]


def test_an_escape_is_seen() -> None:
    def of(language: str, code: str, reason: str = "") -> Block:
        return Block(ROOT / "README.md", 1, language, "", code, "", reason, False, (0, 0), (0, 0))

    assert misuse(of("python", "x = 1", "a fragment"))
    assert misuse(of("python", "x = 1", "tests/no_such_test.py does"))
    assert not misuse(of("python", "x = 1", "takes hours"))
    assert misuse(of("", "x = 1"))
    assert misuse(of("text", "steadygrad report\n"))
    assert not misuse(of("text", "steadygrad: Steady over 300 steps\n  and more"))


def test_blocks_that_are_not_run_are_python_all_the_same() -> None:
    for block in BLOCKS:
        if block.language == "python" and block.reason:
            compile(block.code, block.place, "exec", dont_inherit=True)


def test_pip_commands_name_extras_that_exist() -> None:
    known = set(metadata("steadygrad").get_all("Provides-Extra"))
    commands = [
        line for block in BLOCKS for line in block.code.splitlines() if line.startswith("pip ")
    ]
    assert commands
    for command in commands:
        for named in re.findall(r"steadygrad\[([\w,-]+)\]", command):
            assert set(named.split(",")) <= known, command
