"""Foreign text in every terminal view: shown, never obeyed."""

from __future__ import annotations

import re
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import numpy as np
import pytest
from click.testing import CliRunner

import steadygrad
from steadygrad.cli import group
from steadygrad.compare import Grid, TrainingResult, judge
from steadygrad.compare import show as comparing
from steadygrad.launch.plan import Plan
from steadygrad.launch.session import Session
from steadygrad.live import session as interactive
from steadygrad.runlog import RunWriter, StepRecord, TensorInfo
from steadygrad.runlog.notice import warn
from steadygrad.text import printable, times
from steadygrad.vocabulary import RECOVERY

HOSTILE = "[red]\x1b[2J\u202e\x07\x9b31m\u2028"
"""Markup, commands of a terminal in two spellings, a turn of direction, a bell, a line end."""


def obeyed(text: str) -> set[str]:
    return set("\x1b\u202e\x07\x9b\u2028") & set(text)


def run_file(folder: Path, name: str = f"run{HOSTILE}.db") -> Path:
    path = folder / name
    with RunWriter(path, info={"policy": HOSTILE, "script": HOSTILE, "exit": HOSTILE}) as writer:
        ids = writer.add_tensors([TensorInfo(HOSTILE, (2,), module=HOSTILE)])
        for step in range(40):
            norm = float("nan") if step == 30 else 1.0
            writer.write_step(
                StepRecord(step, loss=1.0, norm=norm), ids, [norm], [1.0], [step == 30], [0]
            )
        writer.write_event(HOSTILE, {HOSTILE: HOSTILE}, 3)
        writer.write_event(RECOVERY, dict.fromkeys(("act", "trigger", "nature"), HOSTILE), 3)
        writer.update_info(loop={"criterion": HOSTILE, "chains": [[HOSTILE]]}, results={HOSTILE: 1})
    return path


COMMANDS: dict[str, tuple[str, ...]] = {
    "diagnose": ("diagnose", "{run}"),
    "calibrate": ("calibrate", "{run}"),
    "report": ("report", "{run}", "-o", "{folder}/" + HOSTILE + ".html"),
    "report again": ("report", "{run}", "-o", "{run}"),
    "report --terminal": ("report", "{run}", "--terminal"),
    "watch": ("watch", "{run}", "--once"),
    "export": ("export", "{run}", "--to", "jsonl", "-o", "{folder}/" + HOSTILE + ".jsonl"),
    "export to nothing": ("export", "{run}", "--to", HOSTILE),
    "lint": ("lint", "{folder}"),
    "lint --json": ("lint", "{folder}", "--format", "json"),
    "no file": ("diagnose", HOSTILE),
    "no script": ("run", HOSTILE),
    "no policy": ("run", "--clip", HOSTILE, "x.py"),
    "no address": ("run", "--alert", HOSTILE, "x.py"),
    "no logger": ("run", "--log", HOSTILE, "x.py"),
    "no rule": ("explain", HOSTILE),
    "no option": ("diagnose", "--" + HOSTILE),
    "no command": (HOSTILE,),
    "no option of all": ("--" + HOSTILE,),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_shows_foreign_text(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = run_file(tmp_path)
    (tmp_path / f"{HOSTILE}.py").write_text("def f(:")
    (tmp_path / "x.py").write_text("")
    words = [word.format(run=path, folder=tmp_path) for word in COMMANDS[name]]
    result = CliRunner().invoke(group, words)
    assert isinstance(result.exception, (SystemExit, type(None))), result.exception
    assert result.output
    assert not obeyed(result.output), result.output


def test_what_click_says_of_the_words_before_a_command_is_text(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Click before 8.2 repeats an unknown option as it was typed."""

    def refused(self: click.Group, ctx: click.Context, args: list[str]) -> list[str]:
        raise click.UsageError(f"No such option: {args[0]}")

    monkeypatch.setattr(click.Group, "parse_args", refused)
    result = CliRunner().invoke(group, ["--" + HOSTILE])
    assert (result.exit_code, obeyed(result.output)) == (2, set())
    assert "No such option: --[red]" in result.output


def test_the_newest_run_is_named_as_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_file(tmp_path, f"steadygrad-run-{HOSTILE}.db")
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(group, ["calibrate"])
    assert "newest run here" in result.output
    assert not obeyed(result.output)


def test_a_comparison_shows_foreign_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What a script printed last stands in the lines of troubles; its name in the page's path."""
    outcomes = [
        TrainingResult(f"[b]{HOSTILE}", s, f"exit 1: {HOSTILE}", 0, float("nan")) for s in (0, 1)
    ]
    monkeypatch.setattr(comparing, "run_grid", lambda *_, **__: [judge(outcomes, [HOSTILE])])
    monkeypatch.setattr(comparing, "write_page", lambda *_: tmp_path / HOSTILE / "compare.html")
    comparing.compare(Grid(__file__, (), ("none",), 2, tmp_path))
    said = capsys.readouterr().out
    assert said.count("[red]") >= 5  # markup is text, wherever it stands
    assert not obeyed(said)


def test_what_is_printable_holds_for_names_too() -> None:
    ((name, [(word, number)]),) = printable({HOSTILE: [(HOSTILE, 1)]}).items()
    assert (obeyed(name + word), number) == (set(), 1)


def _resort(folder: Path) -> None:
    session = Session(Plan("x.py", out=f"{folder}/run.db"))
    session.path = HOSTILE
    session._last_resort(ValueError(HOSTILE))


def _interactive(folder: Path) -> None:
    (folder / f"{HOSTILE}.db").touch()
    interactive.open_writer(folder / f"{HOSTILE}.db").close()


def _warning(_: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn(f"a server answered {HOSTILE}")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warn(f"a server answered {HOSTILE}")
    print(caught[0].message, file=sys.stderr)


@pytest.mark.parametrize("speak", [_resort, _interactive, _warning])
def test_what_is_said_beside_a_training(
    speak: Callable[[Path], Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(interactive, "is_interactive", lambda: True)
    monkeypatch.setattr(sys, "__stderr__", SimpleNamespace(write=sys.stderr.write, flush=id))
    speak(tmp_path)
    said = "".join(capfd.readouterr())
    assert printable(HOSTILE) in said
    assert not obeyed(said)


def test_factors_are_written_by_one_function() -> None:
    by_hand = re.compile(r"(number\([^{}]*\)|:[.,]?\d*[gefn])\} times")
    sources = Path(steadygrad.__file__).parent.rglob("*.py")
    found = [p.name for p in sources if by_hand.search(p.read_text(encoding="utf-8"))]
    assert found == []
    for ratio in np.geomspace(1e-6, 1e30, 400):
        text = times(float(ratio))
        assert "e" not in text.removesuffix(" times").replace("million", ""), text
