"""A step at which nothing is decided goes a shorter way than others, and is recorded alike."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from steadygrad.kernels import native
from steadygrad.torch.step import copies
from steadygrad.torch.step.engine import Engine

Train = Callable[[nn.Module, torch.optim.Optimizer, int], None]


def _plain(model: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
    torch.manual_seed(step)
    optimizer.zero_grad()
    (model(torch.randn(8, 3)) - 1).square().mean().backward()
    optimizer.step()


def _clipping(model: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
    torch.manual_seed(step)
    optimizer.zero_grad()
    (model(torch.randn(8, 3)) - 1).square().mean().backward()
    nn.utils.clip_grad_norm_(model.parameters(), 0.5 if step % 2 else 50.0)
    optimizer.step()


def _odd(model: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
    """Steps of all kinds: some without a gradient or a loss, with NaN, inf, or clipped by value."""
    torch.manual_seed(step)
    optimizer.zero_grad()
    loss = (model(torch.randn(8, 3)) - 1).square().mean()
    (loss * float("nan") if step == 7 else loss).backward()
    first = next(model.parameters())
    if step == 9:
        first.grad = None
    elif step == 11:
        first.grad[0, 0] = float("inf")
    elif step == 13:
        nn.utils.clip_grad_value_(model.parameters(), 0.01)
    elif step == 15:
        nn.utils.clip_grad_norm_([first], 0.1)
    optimizer.param_groups[0]["lr"] = torch.tensor(0.01) if step == 17 else 0.01 / (step + 1)
    optimizer.step()
    if step in (7, 11):
        nn.init.constant_(model[0].weight, 0.1)
        for p in model.parameters():
            p.data.nan_to_num_(0.1, 0.1, 0.1)


def _sparse(model: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
    """Of one parameter each row's gradient comes in two entries, of another some rows are zeros."""
    torch.manual_seed(step)
    optimizer.zero_grad()
    (model(torch.randn(8, 3)) - 1).square().mean().backward()
    first, other = next(model.parameters()), model[2].weight
    rows = torch.arange(4).repeat(2)[None]
    values = torch.cat([first.grad * 3, first.grad * -2])
    first.grad = torch.sparse_coo_tensor(rows, values, first.shape, check_invariants=True)
    other.grad[step % 2] = 0
    other.grad = other.grad.to_sparse(1)
    optimizer.step()


def _changing(model: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
    """Now and then the optimizer, its step or the passes before it are not as before."""
    torch.manual_seed(step)
    optimizer.zero_grad()
    loss = (model(torch.randn(8, 3)) - 1).square().mean()
    if step == 3:
        x = torch.ones(2, 3, requires_grad=True)
        (slope,) = torch.autograd.grad(model(x).sum(), x, create_graph=True)
        loss = loss + slope.square().mean()
    if step == 5:
        (model(torch.randn(8, 3)) - 1).square().mean().backward()
    if step == 7:
        loss.backward(torch.tensor(2.0))
    elif step == 9:
        torch.autograd.backward([loss, 3 * (model(torch.randn(8, 3)) - 1).square().mean()])
    elif step != 11:
        loss.backward()
    if step == 13:
        optimizer.state.clear()
    if step == 15:
        optimizer.param_groups[0]["params"].reverse()
    if step == 11:
        optimizer.step(lambda: loss.backward() or loss)
    else:
        optimizer.step()


@pytest.mark.skipif(not native.AVAILABLE, reason="the extension is not built")
@pytest.mark.parametrize(
    ("train", "short"), [(_plain, 24), (_clipping, 24), (_odd, 18), (_sparse, 24), (_changing, 20)]
)
def test_both_ways_give_the_same_record(
    train: Train, short: int, observe: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    long: list[int] = []
    before, terms = Engine.before, Engine.terms

    def counted(engine: Engine, *arguments: Any) -> Any:
        long.append(engine.index)
        return before(engine, *arguments)

    monkeypatch.setattr(Engine, "before", counted)
    monkeypatch.setattr(Engine, "terms", lambda engine: None if engine.index else terms(engine))
    observation = observe()
    for _ in range(2):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
        for step in range(24):
            train(model, optimizer, step)
    run = observation.run()
    assert 24 - long.count(0) >= short - 1  # at the first tensors are announced
    assert long.count(1) == 24
    one, other = (run.steps[run.steps.optimizer == index] for index in (0, 1))
    assert len(one) == len(other) == 24
    for column in set(one.dtype.names) - {"time", "optimizer"}:
        np.testing.assert_array_equal(one[column], other[column], column)
    for figures in (run.tensor_norms, run.tensor_max_abs, run.tensor_nonfinite, run.tensor_zeros):
        halves = figures[run.steps.optimizer == 0], figures[run.steps.optimizer == 1]
        own = figures.shape[1] // 2
        np.testing.assert_array_equal(halves[0][:, :own], halves[1][:, own:])
    calls: list[list[str]] = [[], []]  # but the first, which counts the other's backward passes
    for event in run.events:
        if event.kind == "script_clip" and event.step:
            data = dict(event.data)
            calls[data.pop("optimizer")].append(str((event.step, data)))
    assert calls[0] == calls[1]


def _hears(optimizer: Any, while_hearing: Callable[[], object]) -> None:
    """From now on something is done while our Python asks for the loss of a step."""
    losses = optimizer._steadygrad._engine.losses
    heard = losses.heard
    losses.heard = lambda: (while_hearing(), heard())[1]


def test_a_rate_that_is_replaced_while_a_step_is_recorded(observe: Callable[..., Any]) -> None:
    model = nn.Linear(3, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    observation = observe()
    kept: list[float] = []

    def another() -> None:  # as another thread may do, which then uses the old one's memory again
        optimizer.param_groups[0]["lr"] *= 0.5
        kept.extend(float(number) for number in range(8))

    for step in range(24):
        _plain(model, optimizer, step)
        if step == 20:
            _hears(optimizer, another)
    assert observation.run().steps["lr"].tolist() == [0.5] * 21 + [0.25, 0.125, 0.0625]


@pytest.mark.parametrize("where", ["loss", "sample"])
@pytest.mark.parametrize("by_c", [True, False])
def test_a_step_of_another_thread_in_the_middle_of_one_has_a_number_of_its_own(
    by_c: bool, where: str, observe: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = nn.Linear(3, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    observation = observe()
    if not by_c:
        monkeypatch.setattr(Engine, "terms", lambda engine: None)
    main = threading.current_thread()

    def between(*_: object) -> None:
        if threading.current_thread() is main:
            thread = threading.Thread(target=optimizer.step)
            thread.start()
            thread.join()

    for step in range(20):
        _plain(model, optimizer, step)
        if step == 17 and where == "loss":
            _hears(optimizer, between)
        elif step == 17:
            sampler: Any = optimizer._steadygrad._engine.journal.recorder.sampler
            sampler.idle_before = 0
            monkeypatch.setattr(sampler, "before_update", between)
    numbers = sorted(observation.run().steps["step"].tolist())
    assert len(numbers) > 20
    assert numbers == list(range(len(numbers)))


def test_one_optimizer_may_step_while_another_is_looked_for(
    observe: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    models = [nn.Linear(3, 4) for _ in range(2)]
    one, other = (torch.optim.SGD(model.parameters(), lr=0.01) for model in models)
    observation = observe()
    asked: list[int] = []

    def dead() -> None:
        asked.append(1)
        if len(asked) == 1:
            _plain(models[1], other, 0)

    monkeypatch.setattr(copies, "_met", type(copies._met)([dead] * 2))
    _plain(models[0], one, 0)
    assert len(observation.run().steps) == 2
