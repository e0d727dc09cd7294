"""What a handle says of the run it records, the same from every framework."""

from __future__ import annotations

from pathlib import Path

import jax.numpy as jnp
import optax
import pytest
import torch

import steadygrad.jax as sj
import steadygrad.torch as st
from steadygrad.errors import UsageError
from steadygrad.live import session


def test_the_handle_of_torch_and_of_jax_show_the_same_card(tmp_path: Path) -> None:
    """One weight, gradients 3 and 4, twenty times: the figures are known."""
    weight = torch.nn.Parameter(torch.zeros(2))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    with st.attach(optimizer, clip="norm:1.0", run=tmp_path / "torch.db") as steady:
        for _ in range(20):
            weight.grad = torch.tensor([3.0, 4.0])
            optimizer.step()
        of_torch = steady.card
    tx, params = sj.guard(optax.sgd(1.0), "norm:1.0"), {"w": jnp.zeros(2)}
    state = tx.init(params)
    with sj.Recorder(tmp_path / "jax.db", params) as recorder:
        for _ in range(20):
            _, state = tx.update({"w": jnp.array([3.0, 4.0])}, state, params)
            recorder.record(state)
        of_jax = recorder.card
        assert repr(recorder) == "<steadygrad Recorder: recorded in jax.db>"
    shown = dict(of_torch.figures)
    assert shown.pop("policy") == "norm:1.0"
    assert shown == dict(of_jax.figures)
    assert shown["steps"] == "20"
    assert shown["last norm"] == "5"
    assert shown["clipped"] == "100.0%"
    assert (of_torch.threshold, of_torch.curve) == (1.0, of_jax.curve)
    assert dict(steady.card.figures) == dict(of_torch.figures)  # detached: the file knows


def test_a_handle_without_a_run_says_what_to_type() -> None:
    steady = st.attach(torch.optim.SGD([torch.nn.Parameter(torch.zeros(2))], lr=1.0))
    assert "run='run.db'" in steady.card.sentences[0]
    with pytest.raises(UsageError, match=r"type attach\(optimizer, ..., run='run.db'\)"):
        steady.diagnose()


def test_jax_in_a_cell_that_is_run_again_begins_the_next_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(session, "is_interactive", lambda: True)
    monkeypatch.setattr("steadygrad.jax.recording.is_interactive", lambda: True)
    tx, params = sj.guard(optax.sgd(1.0)), {"w": jnp.zeros(2)}
    recorder = sj.Recorder(tmp_path / "run.db")
    for steps in (3, 2):
        state = tx.init(params)
        for _ in range(steps):
            _, state = tx.update({"w": jnp.ones(2)}, state, params)
            recorder.record(state)
        recorder.hand_over()
    assert len(recorder.run) == 2
    recorder.close()
    assert "recorded in run-2.db" in capsys.readouterr().out
