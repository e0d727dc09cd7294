"""A replay leaves the training exactly as it was."""

from __future__ import annotations

import gc
import random
import warnings
import weakref
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import steadygrad.torch as sg
from steadygrad.errors import NaNOriginWarning
from steadygrad.torch.origin import patches


class Restless(nn.Module):
    """Draws from every generator, keeps statistics and state, and breaks when told to."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Linear(4, 6), nn.BatchNorm1d(6)
        self.drop, self.last = nn.Dropout(0.4), nn.Linear(6, 2)
        self.register_buffer("calls", torch.zeros(()))
        self.seen: list[float] = []
        self.state: Any = None
        self.edge = False
        self.count, self.past = 0, {"mean": torch.zeros(())}
        self.level, self.system = torch.ones(()), random.SystemRandom()
        self.torchs, self.numpys = torch.Generator().manual_seed(1), np.random.default_rng(1)
        self.pythons = random.Random(1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        self.count += 1
        self.level += 1
        self.past["mean"] = x.mean() + 0.5 * self.past["mean"]
        x = x + torch.rand((), generator=self.torchs) + self.numpys.random() + self.pythons.random()
        self.seen.append(float(x[0, 0]))
        self.state = x.mean()
        h = self.drop(self.norm(self.first(x))) * (1 + 0.01 * self.calls)
        h = h + random.random() + float(np.random.rand())
        return self.last(
            torch.sqrt(torch.relu(h) * (0.0 if self.edge else 1.0) + 1e-3 * (not self.edge))
        )


def train(find_nan: bool, steps: int = 5) -> dict[str, Any]:
    """Train, breaking at step 2, and return everything that a replay might have moved."""
    torch.manual_seed(3)
    random.seed(3)
    np.random.seed(3)
    model = Restless()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    norms: list[float] = []
    steady = sg.attach(optimizer, clip="norm:1.0", find_nan=find_nan)
    for step in range(steps):
        model.edge = step == 2
        optimizer.zero_grad()
        loss = (model(torch.randn(5, 4)) - 1).square().mean()
        loss.backward()
        torch.rand(2), random.random(), np.random.rand()  # a replay must not go back to before
        torch.rand(2, generator=model.torchs), model.numpys.random(), model.pythons.random()
        grads = [p.grad for p in model.parameters()]
        optimizer.step()
        assert all(p.grad is g for p, g in zip(model.parameters(), grads, strict=True))
        norms.append(steady.last.norm)
    answered = steady.origin is not None and steady.origin.replayed
    steady.detach()
    return {
        "answered": answered,
        "weights": {name: value.clone() for name, value in model.state_dict().items()},
        "optimizer": optimizer.state_dict()["state"],
        "norms": norms,
        "drawn": [torch.rand(()), random.random(), float(np.random.rand())],
        "seen": model.seen,
        "state": model.state,
        "count": model.count,
        "level": model.level,
        "past": model.past["mean"],
        "own": [model.torchs.get_state(), model.numpys.random(), model.pythons.random()],
        "modes": [m.training for m in model.modules()],
    }


def test_a_replay_changes_nothing() -> None:
    plain = train(find_nan=False)
    with pytest.warns(NaNOriginWarning, match="SqrtBackward0"):
        found = train(find_nan=True)
    assert found.pop("answered")
    assert not plain.pop("answered")
    torch.testing.assert_close(found, plain, rtol=0, atol=0, equal_nan=True)


def test_listening_alone_changes_nothing() -> None:
    torch.testing.assert_close(train(True, steps=2), train(False, steps=2), rtol=0, atol=0)


def test_torch_is_left_as_it_was() -> None:
    def places() -> list[Any]:
        loader = torch.utils.data.dataloader._BaseDataLoaderIter
        return [
            nn.Module.__call__,
            vars(torch.autograd.Function)["apply"],
            torch.Tensor.backward,
            torch.autograd.backward.__code__,
            torch.optim.Optimizer.zero_grad,
            torch.optim.Optimizer.__init__,
            nn.Module.zero_grad,
            loader.__next__,
            torch._C._len_torch_function_stack(),
        ]

    before = places()
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))])
    steady = sg.attach(optimizer, find_nan=True)
    assert all(new is not old for new, old in zip(places(), before, strict=True))
    steady.detach()
    assert places() == before


def test_the_tape_ends_with_the_last_who_looks() -> None:
    one, two = Restless(), Restless()
    tape = patches.listen(one)
    assert patches.listen(two) is tape
    tape.listen()
    del one
    gc.collect()
    assert patches._tape is tape
    del two
    gc.collect()
    assert patches._tape is None
    assert torch._C._len_torch_function_stack() == 0


def test_a_mode_of_the_users_stays_on_the_stack() -> None:
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with sg.attach(optimizer, find_nan=True) as steady:
        for _ in range(2):
            with torch.device("meta"):
                model(torch.ones(3, 2, device="cpu"))
                assert torch.ones(1).is_meta
            assert not torch.ones(1).is_meta
            loss = model(torch.ones(3, 2)).sum()
            with torch.device("meta"):
                loss.backward()
                assert torch.ones(1).is_meta
            optimizer.step()
        assert not torch.ones(1).is_meta
        assert steady.origin is None
    assert torch._C._len_torch_function_stack() == 0


def test_nothing_is_kept_beyond_a_step() -> None:
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with sg.attach(optimizer, find_nan=True):
        tape = patches._tape
        assert tape is not None
        model(torch.ones(3, 2)).exp().sum().backward()
        assert [entry.kind for entry in tape.entries] == [
            "constant", "module", "operation", "operation", "backward",
        ]  # fmt: skip
        optimizer.step()
        assert not tape.entries
        assert not tape._made
        assert not tape._outside


class Burden:
    """Something that a graph holds."""


class Carries(torch.autograd.Function):
    """Holds a burden until its backward function is gone."""

    held: weakref.ref[Burden]

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        ctx.burden = Burden()
        Carries.held = weakref.ref(ctx.burden)
        return x * 2.0

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        return grad * 2.0


def test_results_and_their_graph_are_not_kept() -> None:
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with sg.attach(optimizer, find_nan=True):
        out = model(torch.ones(3, 2))
        grown = out * 2.0
        state = grown.relu() + torch.func.functional_call(model, {}, (torch.ones(3, 2),))
        state = Carries.apply(state)
        gone = [*map(weakref.ref, (out, grown, state)), Carries.held]
        assert all(reference() is not None for reference in gone)
        del out, grown, state
        assert [reference() for reference in gone] == [None] * 4
        assert len(patches._tape.notes) >= 4


def test_what_is_held_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("steadygrad.torch.origin.tape.MOST_BYTES", 10_000)
    model = nn.Linear(100, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with sg.attach(optimizer, find_nan=True):
        tape = patches._tape
        assert tape is not None
        with torch.no_grad():
            for _ in range(50):  # an evaluation, between two steps
                model(torch.ones(10, 100))
        assert len(tape.entries) < 10


def test_no_warning_where_nothing_breaks() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(True, steps=2)
