"""Held-out makers in trainings of other shapes than those that the finder was built with."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from origin_heldout import FIRST, MAKERS, MARKED, SECOND
from origin_heldout_trainings import FIRST_TRAININGS, TRAININGS
from origin_makers import line_in
from torch import nn

import steadygrad.torch as sg
from steadygrad.runlog.origin import Origin

STEPS, EDGE = 3, 2
ROWS, SIDE, WIDTH = 4, 3, 6


class Slot(nn.Module):
    """Where a maker stands in a model; ``edge`` is set by the training."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function, self.edge = function, False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(x, self.edge)


class Residual2d(nn.Module):
    """Convolutions over planes, a residual branch that ends in the maker."""

    def __init__(self, slot: Slot) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 3, padding=1, bias=False)
        self.norm, self.branch = nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1)
        self.slot, self.head = slot, nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = F.gelu(self.norm(self.stem(x[:, None])))
        h = h + 0.5 * self.slot(self.branch(h))
        return self.head(F.adaptive_avg_pool2d(h, 1).flatten(1))


class Mixer(nn.Module):
    """Mixes along places, then along features; the maker between."""

    def __init__(self, slot: Slot) -> None:
        super().__init__()
        self.places = nn.Sequential(nn.Linear(SIDE, SIDE), nn.SiLU())
        self.features = nn.ModuleList([nn.Linear(WIDTH, WIDTH), nn.LayerNorm(WIDTH)])
        self.slot, self.drop, self.head = slot, nn.Dropout(0.2), nn.Linear(WIDTH, 3)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        h = self.places(x.transpose(1, 2)).transpose(1, 2)
        h = self.slot(h)
        for layer in self.features:
            h = layer(h)
        return {"logits": self.head(self.drop(h).mean(1)), "hidden": h}


class Translator(nn.Module):
    """A GRU that reads, a cell that attends and writes; the maker on what it attends to."""

    def __init__(self, slot: Slot) -> None:
        super().__init__()
        self.reader = nn.GRU(WIDTH, WIDTH, batch_first=True, bidirectional=True)
        self.writer, self.slot, self.head = nn.GRUCell(2 * WIDTH, WIDTH), slot, nn.Linear(WIDTH, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        memory, last = self.reader(x)
        state = last[0]
        for _ in range(2):
            scores = torch.einsum("bsd,bd->bs", memory[..., :WIDTH], state)
            seen = (scores.softmax(-1)[..., None] * memory).sum(1)
            state = self.writer(self.slot(seen), state)
        return self.head(state)


class Graph(nn.Module):
    """Messages along links, summed at their ends; the maker on the messages."""

    def __init__(self, slot: Slot) -> None:
        super().__init__()
        self.message, self.update = nn.Linear(2 * WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.slot, self.head = slot, nn.Linear(WIDTH, 3)
        self.register_buffer("starts", torch.tensor([0, 1, 2, 0]))
        self.register_buffer("ends", torch.tensor([1, 2, 0, 2]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        pairs = torch.cat([x[:, self.starts], x[:, self.ends]], dim=-1)
        messages = self.slot(torch.tanh(self.message(pairs)))
        summed = torch.zeros_like(x).index_add(1, self.ends, messages)
        return self.head(F.elu(self.update(summed)).mean(1))


class Bare:
    """No module at all: parameters, functions and the maker, called from the loop."""

    def __init__(self, slot: Slot) -> None:
        draw = torch.Generator().manual_seed(1)
        self.slot = slot
        self.w = nn.Parameter(torch.randn(WIDTH, WIDTH, generator=draw) / 2)
        self.b = nn.Parameter(torch.zeros(WIDTH))
        self.v = nn.Parameter(torch.randn(3, WIDTH, generator=draw) / 2)

    def parameters(self) -> list[nn.Parameter]:
        return [self.w, self.b, self.v]

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        h = torch.tanh(torch.matmul(x, self.w) + self.b)
        h = F.dropout(h, 0.1)
        h = self.slot.function(h, self.slot.edge)
        return F.linear(h.mean(1), self.v)


ARCHITECTURES: dict[str, Callable[[Slot], Any]] = {
    "residual2d": Residual2d,
    "mixer": Mixer,
    "translator": Translator,
    "graph": Graph,
    "bare": Bare,
}


class Autoencoder(nn.Module):
    """Convolutions down and up; the maker on the code, called from a method that gives the loss."""

    def __init__(self, slot: Slot) -> None:
        super().__init__()
        self.down, self.up = (
            nn.Conv1d(SIDE, 4, 3, padding=1),
            nn.ConvTranspose1d(4, SIDE, 3, padding=1),
        )
        self.slot = slot

    def loss(self, x: torch.Tensor, goal: torch.Tensor) -> torch.Tensor:
        code = self.slot(F.leaky_relu(self.down(x)))
        return F.l1_loss(self.up(code), x) + 1e-4 * code.pow(2).mean()


class Policy(nn.Module):
    """Acts over time, rewarded; the maker on the state that two heads read."""

    def __init__(self, slot: Slot) -> None:
        super().__init__()
        self.cell, self.slot = nn.LSTMCell(WIDTH, WIDTH), slot
        self.acts, self.judges = nn.Linear(WIDTH, 3), nn.Linear(WIDTH, 1)

    def forward(self, x: torch.Tensor, state: Any = None) -> tuple[Any, torch.Tensor, Any]:
        state = self.cell(x, state)
        h = self.slot(state[0])
        return (
            torch.distributions.Categorical(logits=self.acts(h), validate_args=False),
            self.judges(h),
            state,
        )

    def loss(self, x: torch.Tensor, goal: torch.Tensor) -> torch.Tensor:
        losses, state = [], None
        for moment in x.unbind(1):
            chance, value, state = self(moment, state)
            advantage = goal.float() - value.squeeze(-1)
            losses.append(-(chance.log_prob(goal) * advantage.detach()) + advantage.square())
            losses.append(-0.01 * chance.entropy())
        return torch.cat(losses).mean()


class Tied(nn.Module):
    """Words whose table is the output layer too; the maker on the features."""

    def __init__(self, slot: Slot) -> None:
        super().__init__()
        self.table, self.slot = nn.Embedding(9, WIDTH), slot
        self.places = nn.Parameter(torch.zeros(SIDE, WIDTH))
        self.block = nn.TransformerEncoderLayer(WIDTH, 2, 8, 0.1, batch_first=True, norm_first=True)

    def forward(self, *, words: torch.Tensor) -> torch.Tensor:
        h = self.table(words) + self.places
        return self.slot(self.block(h)) @ self.table.weight.t()

    def loss(self, x: torch.Tensor, goal: torch.Tensor) -> torch.Tensor:
        words = (x[..., 0].abs() * 4).long().clamp(0, 8)
        scores = self(words=words)
        return nn.NLLLoss()(F.log_softmax(scores.flatten(0, 1), dim=-1), words.flatten())


class Experts(nn.Module):
    """Each row goes to the two experts that a gate chooses; the maker on what an expert gives."""

    def __init__(self, slot: Slot) -> None:
        super().__init__()
        self.gate, self.slot, self.head = nn.Linear(WIDTH, 3), slot, nn.Linear(WIDTH, 3)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU()) for _ in range(3)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = x.flatten(0, 1)
        weights, chosen = self.gate(rows).softmax(-1).topk(2, dim=-1)
        out = torch.zeros_like(rows)
        for number, expert in enumerate(self.experts):
            places, rank = (chosen == number).nonzero(as_tuple=True)
            if len(places) > 1:
                given = self.slot(expert(rows[places]))
                out = out.index_add(0, places, given * weights[places, rank, None])
        return self.head(out.view_as(x).amax(1))


SECOND_ARCHITECTURES: dict[str, Callable[[Slot], Any]] = {
    "autoencoder": Autoencoder,
    "policy": Policy,
    "tied": Tied,
    "experts": Experts,
}


@dataclass(frozen=True)
class Case:
    """A maker in an architecture, or a training of its own.

    Attributes:
        maker: the maker's or the training's name.
        architecture: what is trained; empty for a training of its own.
    """

    maker: str
    architecture: str = ""

    def __str__(self) -> str:
        return f"{self.maker}-{self.architecture or 'whole'}"


def all_cases() -> list[Case]:
    """Every maker in every architecture, and every training."""
    first = [Case(name, place) for name in MAKERS if name in FIRST for place in ARCHITECTURES]
    second = [
        Case(name, place) for name in MAKERS if name in SECOND for place in SECOND_ARCHITECTURES
    ]
    return [*first, *second, *map(Case, TRAININGS)]


def part_of(case: Case) -> int:
    """1 for what was written first; 2 for what was written after that had been looked at."""
    return 1 if case.maker in FIRST or case.maker in FIRST_TRAININGS else 2


def run(case: Case) -> Origin | None:
    """Train until it breaks, and return what was said of the origin."""
    torch.manual_seed(7 + len(case.maker))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if not case.architecture:
            return TRAININGS[case.maker].run()
        known = {**ARCHITECTURES, **SECOND_ARCHITECTURES}
        return _train(Slot(MAKERS[case.maker]), known[case.architecture])


def _train(slot: Slot, make: Callable[[Slot], Any]) -> Origin | None:
    model = make(slot)
    optimizer = torch.optim.RMSprop(model.parameters(), lr=1e-3)
    with sg.attach(optimizer, clip="norm:1.0", find_nan=True) as steady:
        for step in range(STEPS):
            slot.edge = step == EDGE
            x, goal = torch.randn(ROWS, SIDE, WIDTH), torch.randint(0, 3, (ROWS,))
            _loss_of(model, x, goal).backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return steady.origin


def _loss_of(model: Any, x: torch.Tensor, goal: torch.Tensor) -> torch.Tensor:
    if hasattr(model, "loss"):
        return model.loss(x, goal)
    out = model(x)
    scores = out["logits"] if isinstance(out, dict) else out
    return F.cross_entropy(scores, goal, label_smoothing=0.1)


def expected(case: Case) -> tuple[str, int]:
    """File name and line of the mark."""
    if not case.architecture:
        training = TRAININGS[case.maker]
        return "origin_heldout_trainings.py", line_in(training.marked)
    return "origin_heldout.py", line_in(MARKED.get(case.maker, MAKERS[case.maker]))


def is_right(case: Case, origin: Origin | None) -> bool:
    """Whether the marked line is named; with the rows, and the phase, where the case says them."""
    if origin is None or not origin.replayed:
        return False
    if not case.architecture:
        training = TRAININGS[case.maker]
        if training.phase and origin.phase != training.phase:
            return False
        if training.rows and origin.rows != training.rows:
            return False
        if training.phase == "weights":
            return True
    return (Path(origin.file).name, origin.line) == expected(case)
