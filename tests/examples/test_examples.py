"""Every PyTorch example, untouched, through `steadygrad run`: the same weights to the bit."""

from __future__ import annotations

import runpy
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from steadygrad import open_run

from ..norms import Norms
from ..workbench import Workbench

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


@pytest.fixture
def plainly(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Runs a script in this process, which has imported torch already.

    Gives what it prints, and the norm of each step before the script's clip call.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)

    def run(folder: Path, script: str) -> tuple[str, list[float]]:
        folder.mkdir()
        monkeypatch.chdir(folder)
        monkeypatch.setattr(sys, "argv", words(script))
        monkeypatch.syspath_prepend(EXAMPLES)
        norms = Norms()
        try:
            runpy.run_path(sys.argv[0], run_name="__main__")
        finally:
            norms.end()
        return capsys.readouterr().out, norms.steps

    yield run
    torch.set_num_threads(threads)


def test_all_five_are_found() -> None:
    assert SCRIPTS == ["deep_mlp", "gru_lm", "lstm_lm", "rnn_digits", "transformer_lm"]


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_examples_do_not_know_of_steadygrad(script: str) -> None:
    assert "steadygrad" not in (EXAMPLES / f"{script}.py").read_text()


@pytest.mark.parametrize("script", SCRIPTS)
def test_an_observed_example_ends_with_the_same_weights(
    script: str,
    tmp_path: Path,
    plainly: Callable[[Path, str], tuple[str, list[float]]],
    forked: Workbench,
) -> None:
    said, norms = plainly(tmp_path / "plain", script)
    done = forked.steadygrad("run", "-q", "--out", "run.db", *words(script))
    assert (done.returncode, done.stdout) == (0, said), done.stderr
    assert said.startswith("final loss ")
    weights = (tmp_path / "plain" / "weights.pt").read_bytes()
    assert Path(forked.run_file("weights.pt")).read_bytes() == weights
    run = open_run(forked.run_file())
    assert len(run) == STEPS
    assert f"final loss {run.steps.loss[-1]:.4f}\n" == said
    np.testing.assert_allclose(run.steps.norm, norms, rtol=1e-5)
    assert run.steps.norm[0] > 0
    assert all(t.name for t in run.tensors)
    if script == "deep_mlp":  # the comparison of weights can fail: here they must differ
        clipped = ["--out", "clipped.db", "--clip", "norm:0.001"]
        assert forked.steadygrad("run", "-q", *clipped, *words(script)).returncode == 0
        assert Path(forked.run_file("weights.pt")).read_bytes() != weights
