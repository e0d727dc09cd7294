"""How a run ended, as its file says it in a notebook: by the cells that trained, and no other."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from steadygrad.live import session
from steadygrad.runlog import RunWriter, StepRecord, TrainingStopped, open_run, thinning


class Shell:
    """IPython's, as far as it is asked."""

    events = SimpleNamespace(register=lambda *_: None)


@pytest.fixture
def writer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunWriter:
    shell = Shell()
    monkeypatch.setattr(session, "shell_of_ipython", lambda: shell)
    out = RunWriter(tmp_path / "run.db")
    session.follow(out)
    return out


def cell(writer: RunWriter, steps: int, error: BaseException | None = None) -> Any:
    """A cell takes steps and ends; gives what the file says of it."""
    for step in range(steps):
        writer.write_step(StepRecord(step, norm=1.0), [], [], [], [], [])
    session._note_the_end(SimpleNamespace(error_in_exec=error))
    return open_run(writer.path).info.get("exit")


def test_the_last_cell_that_trained_says_how_the_run_ended(writer: RunWriter) -> None:
    assert cell(writer, 0, RuntimeError()) == "RuntimeError"  # it may be why there is no step
    assert cell(writer, 3) == "ok"
    assert cell(writer, 0, NameError()) == "ok"
    assert cell(writer, 2, KeyboardInterrupt()) == "KeyboardInterrupt"
    assert cell(writer, 0) == "KeyboardInterrupt"
    assert cell(writer, 4) == "ok"
    writer.close()


def test_a_training_that_an_alert_stopped_stays_stopped(writer: RunWriter) -> None:
    writer.ask_to_stop("SG101 at step 1: NaN in fc.", 1)
    assert cell(writer, 2, TrainingStopped("SG101")) == "stopped"
    writer.close()


def test_a_long_run_is_not_said_to_be_as_short_as_what_was_read_of_it(
    writer: RunWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, few in (("LONG", 100), ("END", 60), ("STRETCHES", 2), ("STRETCH", 5)):
        monkeypatch.setattr(thinning, name, few)
    assert cell(writer, 3000) is None
    assert len(thinning.thinned(open_run(writer.path))) < 3000
    assert "over 3,000 steps" in session._judged(writer.path).sentence
    writer.close()
