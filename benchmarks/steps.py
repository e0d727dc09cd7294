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
    """Two layers over 32 steps: about 20 ms a training step on one core."""

    batch = 36

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(32, 128, 2, batch_first=True)
        self.head = nn.Linear(128, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.rnn(x)[0][:, -1])


class Transformer(nn.Module):
    """Four small encoder layers, 52 tensors: about 20 ms as well."""

    batch = 28

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
    kind: type[Lstm | Transformer], around: Around, clips: bool, folder: Path, ending: ExitStack
) -> tuple[Callable[[], None], object]:
    """One training step, seeded, and what stands around its optimizer."""
    torch.manual_seed(0)
    model, batch = kind(), kind.batch
    data, labels = torch.randn(batch, 32, 32), torch.randint(10, (batch,))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    handle = ending.enter_context(around(model, optimizer, folder))

    def step() -> None:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(data), labels).backward()
        if clips:
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    return step, handle


def all_rows(threads: int, seconds: float, clock: str) -> Iterator[Row]:
    """Each model with each way."""
    for kind in (Lstm, Transformer):
        with tempfile.TemporaryDirectory() as folder, ExitStack() as ending:
            made = [
                stepper(kind, around, clips, Path(folder), ending)
                for around, clips, _ in WAYS.values()
            ]
            contenders = [
                Contender(name, step, target=WAYS[name][2])
                for name, (step, _) in zip(WAYS, made, strict=True)
            ]
            times = best_of(contenders, seconds * 4, clock)
            name = f"small {kind.__name__}"
            yield from rows_of(threads, name, "whole step", contenders, times)
            handles = dict(zip(WAYS, (handle for _, handle in made), strict=True))
            yield from own_account(threads, name, handles, times[0])


def own_account(
    threads: int, name: str, handles: dict[str, object], plain_seconds: float
) -> Iterator[Row]:
    """What the library says it takes a step, on average, samples and first step included.

    A share of one in a hundred is less than the noise of whole steps on most machines.
    """
    case = "plain step, and what attach says it adds to it"
    yield Row(threads, name, case, "plain step", round(plain_seconds * 1e3, 4), 1.0)
    for way, handle in handles.items():
        if isinstance(handle, sg.Steady):
            added = handle.overhead_seconds / handle.steps
            ratio = round(1 + added / plain_seconds, 4)
            yield Row(threads, name, case, way, round(added * 1e3, 4), ratio, str(ALLOWED_SHARE))
