"""Every PyTorch example, untouched, through `steadygrad run`: the same weights to the bit."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from steadygrad import open_run

EXAMPLES = Path(__file__).parents[2] / "examples"
SCRIPTS = sorted(
    p.stem
    for p in EXAMPLES.glob("*.py")
    if "ArgumentParser" in p.read_text() and "import torch" in p.read_text()
)
STEPS = 6


def words(script: str) -> list[str]:
    options = ["--steps", str(STEPS), "--seed", "3", "--out", "weights.pt"]
    return [str(EXAMPLES / f"{script}.py"), *options]


def observed(folder: Path, *options: str, script: str) -> str:
    """What the script prints under `steadygrad run`."""
    folder.mkdir()
    command = [sys.executable, "-m", "steadygrad", "run", "-q", "--out", "run.db", *options]
    done = subprocess.run(
        [*command, *words(script)],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def plainly(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Runs a script in this process, which has imported torch already: what it prints."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)

    def run(folder: Path, script: str) -> str:
        folder.mkdir()
        monkeypatch.chdir(folder)
        monkeypatch.setattr(sys, "argv", words(script))
        monkeypatch.syspath_prepend(EXAMPLES)
        runpy.run_path(sys.argv[0], run_name="__main__")
        return capsys.readouterr().out

    yield run
    torch.set_num_threads(threads)


def test_all_five_are_found() -> None:
    assert SCRIPTS == ["deep_mlp", "gru_lm", "lstm_lm", "rnn_digits", "transformer_lm"]


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_examples_do_not_know_of_steadygrad(script: str) -> None:
    assert "steadygrad" not in (EXAMPLES / f"{script}.py").read_text()


@pytest.mark.parametrize("script", SCRIPTS)
def test_an_observed_example_ends_with_the_same_weights(
    script: str, tmp_path: Path, plainly: Callable[[Path, str], str]
) -> None:
    said = plainly(tmp_path / "plain", script)
    assert observed(tmp_path / "observed", script=script) == said
    assert said.startswith("final loss ")
    weights = (tmp_path / "plain" / "weights.pt").read_bytes()
    assert (tmp_path / "observed" / "weights.pt").read_bytes() == weights
    run = open_run(tmp_path / "observed" / "run.db")
    assert len(run) == STEPS
    assert f"final loss {run.steps.loss[-1]:.4f}\n" == said
    assert (run.steps.norm > 0).all()
    assert all(t.name for t in run.tensors)
    if script == "deep_mlp":  # the comparison of weights can fail: here they must differ
        observed(tmp_path / "clipped", "--clip", "norm:0.001", script=script)
        assert (tmp_path / "clipped" / "weights.pt").read_bytes() != weights
