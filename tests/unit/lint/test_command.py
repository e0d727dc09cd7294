"""The command: formats, selection, configuration, noqa, notebooks, fixes in place."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from steadygrad.cli import group
from steadygrad.lint import CHECKS, page
from steadygrad.lint.explaining import explain
from steadygrad.rules import REGISTRY

BROKEN = """\
import torch
for x in data:
    opt.zero_grad()
    model(x).sum().backward()
    opt.step()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
"""

MENDED = """\
import torch
for x in data:
    opt.zero_grad()
    model(x).sum().backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    opt.step()
"""


@pytest.fixture
def broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "train.py"
    path.write_text(BROKEN)
    return path


def lint(*arguments: str) -> Result:
    return CliRunner().invoke(group, ["lint", *arguments])


def test_text_names_the_place_and_fails(broken: Path) -> None:
    result = lint("train.py")
    assert result.output.startswith("train.py:6:5: error SG405 ")
    assert result.output.endswith("1 error in 1 file.\n")
    assert result.exit_code == 1


@pytest.mark.parametrize(("limit", "code"), [("error", 1), ("never", 0)])
def test_fail_on(broken: Path, limit: str, code: int) -> None:
    assert lint("--fail-on", limit, "train.py").exit_code == code


def test_json(broken: Path) -> None:
    [found] = json.loads(lint("--format", "json", ".").output)
    assert (found["id"], found["line"], found["column"]) == ("SG405", 6, 5)


def test_sarif(broken: Path) -> None:
    log = json.loads(lint("--format", "sarif", ".").output)
    [result] = log["runs"][0]["results"]
    assert result["ruleId"] == "SG405"
    assert result["locations"][0]["physicalLocation"]["region"]["startLine"] == 6
    assert {rule["id"] for rule in log["runs"][0]["tool"]["driver"]["rules"]} == set(CHECKS)


def test_github(broken: Path) -> None:
    assert lint("--format", "github", ".").output.startswith("::error file=train.py,line=6,col=5,")


def test_select_and_ignore(broken: Path) -> None:
    assert lint("--select", "SG404", "train.py").exit_code == 0
    assert lint("--select", "SG4", "--ignore", "SG405", "train.py").exit_code == 0
    unknown = lint("--select", "XY1", "train.py")
    assert unknown.exit_code == 2
    assert "no check begins with 'XY1'" in unknown.output


def test_noqa_silences_its_own_id_alone(broken: Path) -> None:
    broken.write_text(BROKEN.rstrip() + "  # noqa: SG405\n")
    assert lint("train.py").exit_code == 0
    broken.write_text(BROKEN.rstrip() + "  # noqa: E501\n")
    assert lint("train.py").exit_code == 1


def test_the_projects_configuration(broken: Path) -> None:
    table = Path("pyproject.toml")
    table.write_text('[tool.steadygrad.lint]\nignore = ["SG405"]\n')
    assert lint("train.py").exit_code == 0
    table.write_text('[tool.steadygrad.lint]\nexclude = ["train.py"]\n')
    assert lint(".").output == "Nothing found in 0 files.\n"
    table.write_text('[tool.steadygrad.lint]\nignore = "SG405"\n')
    assert "must be a list of strings" in lint("train.py").output
    table.write_text("[tool.steadygrad.lint]\nignores = []\n")
    assert "has no entry" in lint("train.py").output
    table.write_text("tool = 5\n")
    assert "must be a table" in lint("train.py").output


def test_fix_in_place(broken: Path) -> None:
    assert "1 fixed" in lint("--fix", "train.py").output
    assert broken.read_text() == MENDED


def notebook(*cells: str) -> str:
    data = {
        "cells": [
            {"cell_type": "markdown", "source": ["# A title"], "metadata": {}},
            *(
                {"cell_type": "code", "source": c.splitlines(keepends=True), "metadata": {}}
                for c in cells
            ),
        ],
        "nbformat": 4,
        "nbformat_minor": 5,
        "metadata": {"kept": "as it was"},
    }
    return json.dumps(data)


def test_a_notebook_is_read_and_mended_cell_by_cell(broken: Path) -> None:
    path = Path("train.ipynb")
    path.write_text(notebook("%matplotlib inline\n!pip install x\nimport torch\n", BROKEN))
    assert lint("train.ipynb").output.startswith("train.ipynb:cell 3:6:5: error SG405 ")
    lint("--fix", "train.ipynb")
    data = json.loads(path.read_text())
    assert "".join(data["cells"][2]["source"]) == MENDED
    assert data["cells"][1]["source"][:2] == ["%matplotlib inline\n", "!pip install x\n"]
    assert data["metadata"] == {"kept": "as it was"}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("broken.py", b"def clip_grad_norm_(:"),
        ("latin.py", b"# \xe9 backward()"),
        ("null.py", b"x.backward()\x00"),
        ("broken.ipynb", b"{"),
        ("list.ipynb", b"[]"),
        ("deep.py", b"loss.backward()\nx = " + b"(" * 300 + b")" * 300),
        ("deeper.py", b"loss.backward()\nx = " + b"-" * 10_000 + b"1"),
    ],
)
def test_a_file_that_cannot_be_read_is_named_and_ends_nothing(
    broken: Path, name: str, content: bytes
) -> None:
    Path(name).write_bytes(content)
    result = lint(".")
    assert f"not linted: {name}" in result.output
    assert "SG405" in result.output
    assert result.exit_code == 1


def test_a_path_that_does_not_exist(broken: Path) -> None:
    result = lint("nowhere.py")
    assert result.exit_code == 2
    assert "there is no file or folder 'nowhere.py'" in result.output


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no named pipes")
def test_a_pipe_among_the_files_is_not_opened(broken: Path) -> None:
    os.mkfifo("pipe.py")
    assert "SG405" in lint(".").output


def test_escape_sequences_in_names_are_shown_as_text(broken: Path) -> None:
    Path("a\x1b[31m.py").write_text(BROKEN)
    assert "\x1b" not in lint(".").output


def test_no_framework_is_imported(broken: Path) -> None:
    code = (
        "import sys; from steadygrad.lint import lint; lint('.'); "
        "print(*{'torch', 'tensorflow', 'keras', 'jax', 'numpy'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_every_check_has_a_page_and_says_what_it_proves() -> None:
    for check in CHECKS.values():
        assert check.proves
        assert check.assumes
        assert (check.id in REGISTRY) != bool(page(check.id))
        assert explain(check.id).startswith(f"# {check.id}: ")
    assert set(CHECKS) <= {line.split()[0] for line in explain().splitlines()}


def test_the_flake8_plugin_speaks_flake8() -> None:
    import ast

    from steadygrad.lint.flake8_plugin import Plugin

    [(line, column, text, kind)] = Plugin(ast.parse(BROKEN), BROKEN.splitlines(keepends=True)).run()
    assert (line, column, text[:6], kind) == (6, 4, "SG405 ", Plugin)
