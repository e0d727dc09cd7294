"""Accelerate: prepared optimizers, accumulation, its GradScaler, its checkpoints."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState

import steadygrad
from steadygrad.integrations.accelerate import attach


@pytest.fixture(autouse=True)
def fresh_state():
    AcceleratorState._reset_state(True)
    GradientState._reset_state()
    yield
    AcceleratorState._reset_state(True)
    GradientState._reset_state()


def prepared(accelerator: Accelerator):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Tanh(), torch.nn.Linear(16, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    return accelerator.prepare(model, optimizer)


def train(accelerator: Accelerator, model, optimizer, batches: int) -> None:
    generator = torch.Generator().manual_seed(1)
    for _ in range(batches):
        x = torch.randn(4, 8, generator=generator)
        with accelerator.accumulate(model):
            loss = (model(x) - 5 * x.sum(1, keepdim=True)).square().mean()
            accelerator.backward(loss)
            optimizer.step()
            optimizer.zero_grad()


def test_accumulation_clips_once_a_window(tmp_path) -> None:
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=4)
    model, optimizer = prepared(accelerator)
    attach(accelerator, optimizer, clip="norm:1.0", model=model, run=tmp_path / "run.db").detach()
    steady = attach(accelerator, optimizer, clip="norm:1.0", model=model, run=tmp_path / "run2.db")
    train(accelerator, model, optimizer, 8)
    steady.detach()
    run = steadygrad.open_run(tmp_path / "run2.db")
    assert len(run.steps) == 2
    assert (run.steps.action == "clip").all()
    assert run.tensors[0].name == "0.weight"


def test_its_scaler_is_seen_through(tmp_path) -> None:
    accelerator = Accelerator(cpu=True)
    scaled = Accelerator(cpu=True)
    scaled.scaler = torch.amp.GradScaler("cpu", init_scale=512.0)
    norms = []
    for one in (accelerator, scaled):
        model, optimizer = prepared(one)
        steady = attach(one, optimizer, clip="norm:1.0", model=model)
        train(one, model, optimizer, 3)
        norms.append(steady.last.norm)
        scale = steady.last.loss_scale
    assert norms[0] == pytest.approx(norms[1], rel=1e-6)  # a power of two changes no digit
    assert scale == 512.0


def test_state_travels_with_accelerates_checkpoint(tmp_path) -> None:
    accelerator = Accelerator(cpu=True)
    model, optimizer = prepared(accelerator)
    steady = attach(accelerator, optimizer, clip="zclip:warmup=2", model=model)
    train(accelerator, model, optimizer, 5)
    accelerator.save_state(str(tmp_path / "state"))
    before = steady.state_dict()
    train(accelerator, model, optimizer, 3)
    accelerator.load_state(str(tmp_path / "state"))
    after = steady.state_dict()
    flat = [np.asarray(v) for v in _leaves(before)]
    assert len(flat) > 2
    assert all(np.array_equal(a, np.asarray(b)) for a, b in zip(flat, _leaves(after), strict=True))


def _leaves(value):
    if isinstance(value, dict):
        for item in value.values():
            yield from _leaves(item)
    else:
        yield value
