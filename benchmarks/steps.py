"""Whole training steps: what `attach` with recording adds to a step of a real model."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, nullcontext
from pathlib import Path

import torch
from torch import nn

import steadygrad.torch as sg
from benchmarks.rows import Row, rows_of
from benchmarks.timing import Contender, best_of

ALLOWED_SHARE = 1.02  # of a 20 ms step


class Lstm(nn.Module):
    """Two layers over 32 steps of 64 sequences: about 20 ms a step on one core."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(32, 128, 2, batch_first=True)
        self.head = nn.Linear(128, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.rnn(x)[0][:, -1])


class Transformer(nn.Module):
    """Four small encoder layers, 50 tensors."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(64, 4, 128, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 4, enable_nested_tensor=False)
        self.inlet, self.head = nn.Linear(32, 64), nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.encoder(self.inlet(x)).mean(1))


Around = Callable[[nn.Module, torch.optim.Optimizer, Path], AbstractContextManager[object]]


def plain(
    model: nn.Module, optimizer: torch.optim.Optimizer, folder: Path
) -> AbstractContextManager[object]:
    """Nothing around the optimizer."""
    return nullcontext()


def attached(model: nn.Module, optimizer: torch.optim.Optimizer, folder: Path) -> sg.Steady:
    return sg.attach(optimizer, clip="norm:1.0", model=model)


def recorded(model: nn.Module, optimizer: torch.optim.Optimizer, folder: Path) -> sg.Steady:
    return sg.attach(optimizer, clip="norm:1.0", model=model, run=folder / "run.db")


def observed(model: nn.Module, optimizer: torch.optim.Optimizer, folder: Path) -> sg.Steady:
    return sg.attach(optimizer, clip="none", model=model, run=folder / "observed.db")


WAYS: dict[str, tuple[Around, bool, float | None]] = {
    "plain step": (plain, False, None),
    "torch clip_grad_norm_": (plain, True, None),
    "attach": (attached, False, None),
    "attach, recording": (recorded, False, ALLOWED_SHARE),
    'attach(clip="none"), recording': (observed, False, ALLOWED_SHARE),
}


def stepper(
    kind: type[nn.Module], around: Around, clips: bool, folder: Path, ending: ExitStack
) -> Callable[[], None]:
    """One training step, seeded."""
    torch.manual_seed(0)
    model, data, labels = kind(), torch.randn(batch, 32, 32), torch.randint(10, (batch,))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    ending.enter_context(around(model, optimizer, folder))

    def step() -> None:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(data), labels).backward()
        if clips:
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    return step


def all_rows(threads: int, seconds: float, clock: str) -> Iterator[Row]:
    """Each model with each way."""
    for kind in (Lstm, Transformer):
        with tempfile.TemporaryDirectory() as folder, ExitStack() as ending:
            contenders = [
                Contender(name, stepper(kind, around, clips, Path(folder), ending), target=target)
                for name, (around, clips, target) in WAYS.items()
            ]
            times = best_of(contenders, seconds * 4, clock)
            yield from rows_of(threads, f"small {kind.__name__}", "whole step", contenders, times)
