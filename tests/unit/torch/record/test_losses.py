"""The losses that a recording handle hears, in every shape of loop."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

import steadygrad
import steadygrad.torch as sg


@pytest.fixture
def model() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Linear(4, 1)


def recorded(path: Path) -> list[float]:
    return steadygrad.open_run(path).steps.loss.tolist()


def test_accumulated_losses_are_summed(model: torch.nn.Module, tmp_path: Path) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    expected = []
    with sg.attach(optimizer, run=tmp_path / "run.db"):
        for step in range(3):
            parts = [model(torch.full((2, 4), step + i / 2)).square().mean() / 2 for i in range(2)]
            for part in parts:
                part.backward()
            expected.append(sum(part.item() for part in parts))
            optimizer.step()
            optimizer.zero_grad()
    assert recorded(tmp_path / "run.db") == expected


def test_a_loss_scale_is_divided_out(model: torch.nn.Module, tmp_path: Path) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    with sg.attach(optimizer, run=tmp_path / "run.db"):
        loss = model(torch.ones(2, 4)).square().mean()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
    assert recorded(tmp_path / "run.db") == [loss.item()]


def test_two_optimizers_each_hear_their_own(tmp_path: Path) -> None:
    """The shape of a GAN: backward and step of one, then of the other."""
    models = [torch.nn.Linear(4, 1), torch.nn.Linear(4, 1)]
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.1) for m in models]
    paths = [tmp_path / "one.db", tmp_path / "two.db"]
    handles = [sg.attach(o, run=p) for o, p in zip(optimizers, paths, strict=True)]
    expected = []
    for model, optimizer in zip(models, optimizers, strict=True):
        loss = model(torch.ones(2, 4)).square().mean()
        loss.backward()
        optimizer.step()
        expected.append([loss.item()])
    for handle in handles:
        handle.detach()
    assert [recorded(path) for path in paths] == expected


def test_what_is_told_goes_before_what_is_heard(model: torch.nn.Module, tmp_path: Path) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with sg.attach(optimizer, run=tmp_path / "run.db") as steady:
        model(torch.ones(2, 4)).mean().backward()
        steady.observe_loss(7.0)
        optimizer.step()
        optimizer.step()
    first, second = recorded(tmp_path / "run.db")
    assert first == 7.0
    assert not math.isclose(second, 7.0)


def test_torch_is_as_it_was_after_the_last_handle(model: torch.nn.Module, tmp_path: Path) -> None:
    def codes() -> tuple[object, object]:
        return torch.autograd.backward.__code__, torch.amp.GradScaler.scale.__code__

    before = codes()
    optimizers = [torch.optim.SGD(model.parameters(), lr=0.1) for _ in range(2)]
    one, two = (sg.attach(o, run=tmp_path / f"{i}.db") for i, o in enumerate(optimizers))
    assert codes()[0] is not before[0]
    one.detach()
    assert codes()[0] is not before[0]
    two.detach()
    assert codes() == before


def test_without_a_run_nothing_is_wrapped(model: torch.nn.Module) -> None:
    before = torch.autograd.backward.__code__
    with sg.attach(torch.optim.SGD(model.parameters(), lr=0.1)):
        assert torch.autograd.backward.__code__ is before
