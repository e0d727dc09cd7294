"""What `attach` tells of a loop by itself: gradients, and the graphs of the first losses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import steadygrad
from steadygrad.torch import attach
from steadygrad.torch.loop import attached


def train(path: Path | None, kind: str) -> list[torch.Tensor]:
    """Forty steps of a classifier, in order or out of it."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    steady = None if path is None else attach(optimizer, clip="none", model=model, run=path)
    for _ in range(40):
        x = torch.randn(16, 6)
        out, labels = model(x), x[:, :3].argmax(1)
        if kind not in ("never cleared", "own gradients", "scaled copies"):
            optimizer.zero_grad()
        if kind == "softmax":
            out = out.softmax(1)
        loss = F.cross_entropy(out, labels)
        if kind == "pairs":
            loss = F.mse_loss(out[:, :1], x[:, 0])
        if kind == "targets":
            loss = F.binary_cross_entropy_with_logits(out[:, 0], labels.float())
        again = F.cross_entropy(model(x), labels)
        loss.backward()
        if kind == "cleared early":
            optimizer.zero_grad()
        if kind == "own gradients":  # as GradNorm's weights have
            for p, g in zip(
                model.parameters(), torch.autograd.grad(again, model.parameters()), strict=True
            ):
                p.grad = g
        if kind == "scaled copies":
            for p in model.parameters():
                p.grad = 0.1 * p.grad
        optimizer.step()
    if steady is not None:
        steady.detach()
    return [p.detach().clone() for p in model.parameters()]


@pytest.mark.parametrize(
    ("kind", "first"),
    [("never cleared", "SG601"), ("cleared early", "SG602"), ("softmax", "SG606"),
     ("pairs", "SG608"), ("targets", "SG609"), ("in order", None),
     ("own gradients", None), ("scaled copies", "SG601")],
)  # fmt: skip
@pytest.mark.filterwarnings(
    "ignore:Using a target size", "ignore::steadygrad.errors.SteadyGradWarning"
)
def test_it_is_told_and_the_training_stays(tmp_path: Path, kind: str, first: str | None) -> None:
    watched, plain = train(tmp_path / "run.db", kind), train(None, kind)
    assert all(torch.equal(a, b) for a, b in zip(watched, plain, strict=True))
    told = [f.id for f in steadygrad.diagnose(tmp_path / "run.db") if f.severity != "info"]
    assert told[:1] == ([first] if first else [])
    assert not attached._listening.holders


def test_a_fault_of_ours_ends_the_looking_and_not_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("a graph of some other kind")

    monkeypatch.setattr(attached.LossGraphs, "saw", fail)
    watched, plain = train(tmp_path / "run.db", "softmax"), train(None, "softmax")
    assert all(torch.equal(a, b) for a, b in zip(watched, plain, strict=True))
    assert "loop" not in steadygrad.open_run(tmp_path / "run.db").info
