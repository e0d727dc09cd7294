"""Every PyTorch example, untouched, through `steadygrad run`: the same weights to the bit."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from steadygrad import open_run

EXAMPLES = Path(__file__).parents[2] / "examples"
SCRIPTS = sorted(
    p.stem
    for p in EXAMPLES.glob("*.py")
    if "ArgumentParser" in p.read_text() and "import torch" in p.read_text()
)
STEPS = 6


def start(
    folder: Path, *before: str, script: str, out: str = "weights.pt"
) -> subprocess.Popen[str]:
    folder.mkdir()
    command = [sys.executable, *before, str(EXAMPLES / f"{script}.py")]
    command += ["--steps", str(STEPS), "--seed", "3", "--out", out]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, cwd=folder, env=environment, text=True, **pipes)  # type: ignore[call-overload]


def finish(process: subprocess.Popen[str]) -> str:
    stdout, stderr = process.communicate(timeout=240)
    assert process.returncode == 0, stderr
    return stdout


def test_all_five_are_found() -> None:
    assert SCRIPTS == ["deep_mlp", "gru_lm", "lstm_lm", "rnn_digits", "transformer_lm"]


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_examples_do_not_know_of_steadygrad(script: str) -> None:
    assert "steadygrad" not in (EXAMPLES / f"{script}.py").read_text()


@pytest.mark.parametrize("script", SCRIPTS)
def test_an_observed_example_ends_with_the_same_weights(script: str, tmp_path: Path) -> None:
    observing = ("-m", "steadygrad", "run", "-q", "--out", "run.db")
    clipping = (*observing, "--clip", "norm:0.001")
    plain = start(tmp_path / "plain", script=script)
    observed = start(tmp_path / "observed", *observing, script=script)
    said = finish(plain)
    assert finish(observed) == said
    assert said.startswith("final loss ")
    weights = (tmp_path / "plain" / "weights.pt").read_bytes()
    assert (tmp_path / "observed" / "weights.pt").read_bytes() == weights
    run = open_run(tmp_path / "observed" / "run.db")
    assert len(run) == STEPS
    assert f"final loss {run.steps.loss[-1]:.4f}\n" == said
    assert (run.steps.norm > 0).all()
    assert all(t.name for t in run.tensors)
    if script == "deep_mlp":  # the comparison of weights can fail: here they must differ
        finish(start(tmp_path / "clipped", *clipping, script=script))
        assert (tmp_path / "clipped" / "weights.pt").read_bytes() != weights
