"""NaN and inf makers in every architecture, each case with the line that is to be named.

A case is a maker of features inside an architecture, a maker in the loss, or broken
data. Two steps are sound; at the third the maker meets its edge. Seconds would be too long
for a case: sizes are tiny, since the line is the same in a large model.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from origin_makers import LOSSES, MAKERS, MARKED_CLASS, line_in
from torch import nn

import steadygrad.torch as sg
from steadygrad.runlog.origin import Origin

STEPS, EDGE = 3, 2
ROWS, TIME, WIDTH = 6, 4, 5


class Maker(nn.Module):
    """A maker as a layer; ``edge`` is set by the training at the step that breaks."""

    def __init__(self, function: Callable[..., torch.Tensor]) -> None:
        super().__init__()
        self.function, self.edge = function, False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(x, self.edge)


class Recurrent(nn.Module):
    """Embedding of nothing: features, a recurrent layer, the maker, a head."""

    def __init__(self, layer: type[nn.Module], inner: nn.Module) -> None:
        super().__init__()
        self.layer = layer(WIDTH, WIDTH, batch_first=True)
        self.inner, self.head = inner, nn.Linear(WIDTH, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out, _ = self.layer(x)
        return self.head(self.inner(out).mean(dim=1))


class Block(nn.Module):
    """A transformer block whose residual branch ends in the maker."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(8)
        self.attention = nn.MultiheadAttention(8, 2, dropout=0.1, batch_first=True)
        self.inner = inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        normed = self.norm(x)
        out, _ = self.attention(normed, normed, normed, need_weights=False)
        return x + self.inner(out)


class Words(nn.Module):
    """Embedded words, averaged."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.table, self.inner, self.head = nn.Embedding(11, WIDTH), inner, nn.Linear(WIDTH, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        words = (x[..., 0].abs() * 10).long().clamp(0, 10)
        return self.head(self.inner(self.table(words)).mean(dim=1))


def mlp(inner: nn.Module) -> nn.Module:
    return nn.Sequential(
        nn.Flatten(), nn.Linear(TIME * WIDTH, 8), nn.BatchNorm1d(8), inner, nn.Linear(8, 3)
    )


def cnn(inner: nn.Module) -> nn.Module:
    conv = nn.Conv1d(TIME, 4, 3, padding=1)
    return nn.Sequential(conv, nn.ReLU(), inner, nn.Flatten(), nn.Linear(4 * WIDTH, 3))


def gru(inner: nn.Module) -> nn.Module:
    return Recurrent(nn.GRU, inner)


def lstm(inner: nn.Module) -> nn.Module:
    return Recurrent(nn.LSTM, inner)


def transformer(inner: nn.Module) -> nn.Module:
    return nn.Sequential(
        nn.Linear(WIDTH, 8), Block(inner), nn.Dropout(0.1), nn.Flatten(), nn.Linear(TIME * 8, 3)
    )


ARCHITECTURES: dict[str, Callable[[nn.Module], nn.Module]] = {
    "mlp": mlp,
    "cnn": cnn,
    "gru": gru,
    "lstm": lstm,
    "transformer": transformer,
    "embedding": Words,
}


class Apart(nn.Module):
    """Encoder and decoder that the training calls by themselves, the maker between them."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Flatten(), nn.Linear(TIME * WIDTH, 6), nn.Tanh())
        self.decoder = nn.Linear(6, 3)
        self.inner = inner


class Cells(nn.Module):
    """A cell that the training calls once a time step."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.cell, self.head, self.inner = nn.GRUCell(WIDTH, WIDTH), nn.Linear(WIDTH, 3), inner


DATA = ("nan_row", "infinite_row", "nan_target", "scaled_column", "embedded_nan")


@dataclass(frozen=True)
class Case:
    """One training that breaks.

    Attributes:
        maker: what breaks it.
        architecture: what is trained.
    """

    maker: str
    architecture: str

    def __str__(self) -> str:
        return f"{self.maker}-{self.architecture}"


def all_cases() -> list[Case]:
    """Every maker in every architecture that takes it."""
    return [*_makers(), *_losses(), *_data()]


def _makers() -> Iterator[Case]:
    for name in MAKERS:
        for architecture in (*ARCHITECTURES, "apart", "cells"):
            yield Case(name, architecture)


def _losses() -> Iterator[Case]:
    for name in LOSSES:
        for architecture in ("mlp", "lstm", "transformer", "apart", "accumulated"):
            yield Case(name, architecture)


def _data() -> Iterator[Case]:
    for name in DATA:
        for architecture in ("mlp", "lstm", "transformer"):
            yield Case(name, architecture)


def run(case: Case) -> Origin | None:
    """Train until it breaks, and return what was said of the origin."""
    torch.manual_seed(len(case.maker))
    inner: nn.Module = nn.Identity()
    if case.maker in MAKERS:
        inner = Maker(MAKERS[case.maker])
    known = {**ARCHITECTURES, "apart": Apart, "cells": Cells, "accumulated": mlp}
    model = known[case.architecture](inner)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    with warnings.catch_warnings(), sg.attach(optimizer, clip="none", find_nan=True) as steady:
        warnings.simplefilter("ignore")  # torch itself warns of some edges
        for step in range(STEPS):
            if isinstance(inner, Maker):
                inner.edge = step == EDGE
            _train(case, model, optimizer, step == EDGE)
        return steady.origin


def _train(case: Case, model: Any, optimizer: torch.optim.Optimizer, edge: bool) -> None:
    loss_of = LOSSES.get(case.maker)
    optimizer.zero_grad()
    for _ in range(2 if case.architecture == "accumulated" else 1):
        x, target = torch.randn(ROWS, TIME, WIDTH), torch.randn(ROWS, 3)
        if edge and case.maker in DATA:
            x, target = _broken(case.maker, model, x, target)
        if case.maker == "scaled_column":
            x = (x - x.mean(dim=0)) / x.std(dim=0)  # origin: scaled_column
        out = _forward(case, model, x)
        loss = (out - target).square().mean()  # origin: nan_target
        if loss_of is not None:
            loss = loss_of(out, target, edge)
        loss.backward()
    optimizer.step()


def _forward(case: Case, model: Any, x: torch.Tensor) -> torch.Tensor:
    if case.architecture == "apart":
        hidden = model.encoder(x)
        return model.decoder(model.inner(hidden))
    if case.architecture == "cells":
        state = torch.zeros(len(x), WIDTH)
        for t in range(x.shape[1]):
            state = model.cell(x[:, t], state)
        return model.head(model.inner(state))
    return model(x)  # origin: nan_row infinite_row


def _broken(
    maker: str, model: nn.Module, x: torch.Tensor, target: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    values, goal = x.numpy(), target.numpy()  # as a loader would: the tape does not see it
    if maker == "nan_row":
        values[4, 1, 2] = np.nan
    elif maker == "infinite_row":
        values[[1, 3]] = np.inf
    elif maker == "nan_target":
        goal[2, 0] = np.nan
    elif maker == "scaled_column":
        values[:, 0, 0] = 1.0
    else:
        with torch.no_grad():
            next(model.parameters())[0] = float("nan")
    return torch.from_numpy(values), torch.from_numpy(goal)


ROWS_OF = {"nan_row": (4,), "infinite_row": (1, 3)}


def expected_lines(case: Case) -> set[tuple[str, int]]:
    """File names and lines that are right."""
    if case.maker in MARKED_CLASS:
        return {("origin_makers.py", line_in(MARKED_CLASS[case.maker]))}
    function = MAKERS.get(case.maker) or LOSSES.get(case.maker)
    if function is not None:
        return {("origin_makers.py", line_in(function))}
    lines = Path(__file__).read_text(encoding="utf-8").splitlines()
    marked = [i for i, line in enumerate(lines, 1) if "# origin:" in line]
    named = [i for i in marked if case.maker in lines[i - 1].partition("# origin:")[2].split()]
    return {("origin_cases.py", line) for line in named}


def is_right(case: Case, origin: Origin | None) -> bool:
    """Whether the origin is the marked line, or the weights where those were broken."""
    if origin is None or not origin.replayed:
        return False
    if case.maker == "embedded_nan":
        return origin.phase == "weights"
    rows = ROWS_OF.get(case.maker)
    if rows is not None and (origin.phase != "input" or origin.rows != rows):
        return False
    return (Path(origin.file).name, origin.line) in expected_lines(case)
