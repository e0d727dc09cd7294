"""What a run file says of the run where the writer was opened by the caller, and of a NaN loss."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import steadygrad
import steadygrad.torch as sg
from steadygrad.runlog import RunWriter
from steadygrad.vocabulary import NAN_LOSS


def train(writer: Any, steps: int, loss_of: Any, tell: bool = True) -> None:
    torch.manual_seed(3)
    players = [torch.nn.Linear(2, 1) for _ in range(2)]
    kinds = (torch.optim.SGD, torch.optim.Adam)
    optimizers = [kind(p.parameters(), lr=0.01) for kind, p in zip(kinds, players, strict=True)]
    handles = [
        sg.attach(o, clip="norm:1.0", run=writer, optimizer_index=i)
        for i, o in enumerate(optimizers)
    ]
    for step in range(steps):
        for player, optimizer, handle in zip(players, optimizers, handles, strict=True):
            optimizer.zero_grad()
            loss = player(torch.ones(1, 2)).square().sum()
            loss.backward()
            if tell:
                handle.observe_loss(loss_of(step))
            optimizer.step()
    for handle in handles:
        handle.detach()


def test_an_open_writer_gets_the_facts_it_lacks(tmp_path: Path) -> None:
    with RunWriter(tmp_path / "run.db", info={"policy": "mine", "seed": 12}) as writer:
        train(writer, 3, lambda step: 1.0)
    info = steadygrad.open_run(tmp_path / "run.db").info
    assert info["framework"] == "torch"
    assert [(o["index"], o["class"]) for o in info["optimizers"]] == [(0, "SGD"), (1, "Adam")]
    assert "torch" in info["versions"]
    assert (info["policy"], info["seed"]) == ("mine", 12)  # what the caller said stays


@pytest.mark.parametrize("loss", [float("nan"), torch.tensor(float("nan"))])
def test_a_nan_loss_is_written_down_once_for_each_optimizer(tmp_path: Path, loss: Any) -> None:
    with RunWriter(tmp_path / "run.db") as writer:
        train(writer, 6, lambda step: loss if step >= 2 else 0.5)
    events = [e for e in steadygrad.open_run(tmp_path / "run.db").events if e.kind == NAN_LOSS]
    assert [(e.step, e.data["optimizer"]) for e in events] == [(2, 0), (2, 1)]
    found = steadygrad.diagnose(tmp_path / "run.db")
    assert {f.id for f in found} == {"SG104"}


def test_a_loss_that_nobody_told_is_no_nan_loss(tmp_path: Path) -> None:
    with RunWriter(tmp_path / "run.db") as writer:
        weight = torch.nn.Parameter(torch.ones(2))
        optimizer = torch.optim.SGD([weight], lr=0.1)
        handle = sg.attach(optimizer, clip="none", run=writer)
        for _ in range(9):
            weight.grad = torch.ones(2)
            optimizer.step()
        handle.detach()
    run = steadygrad.open_run(tmp_path / "run.db")
    assert not [e for e in run.events if e.kind == NAN_LOSS]
    assert run.steps.loss.size == 9


def test_what_was_left_out_of_training_on_purpose_is_known_after_reading(tmp_path: Path) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Linear(3, 1))
    model[0].requires_grad_(False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    handle = sg.attach(optimizer, clip="none", model=model, run=tmp_path / "run.db")
    for _ in range(12):
        optimizer.zero_grad()
        model(torch.ones(2, 3)).square().mean().backward()
        optimizer.step()
    handle.detach()
    run = steadygrad.open_run(tmp_path / "run.db")
    assert run.info["frozen"] == [0, 1]
    assert [f.id for f in steadygrad.diagnose(run)] == []
