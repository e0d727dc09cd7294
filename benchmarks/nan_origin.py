"""`python -m benchmarks.nan_origin`: what listening for the origin of a NaN costs a step.

One model, one optimizer, blocks of steps with and without ``find_nan`` in turn, on the
CPU clock. The ratio of neighbouring blocks is taken, and the median of those: a busy machine
slows both alike.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

import steadygrad.torch as sg

WORDS, BATCH, LENGTH = 200, 16, 33


class Recurrent(nn.Module):
    """A word model of two LSTM layers."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(WORDS, 128)
        self.layers = nn.LSTM(128, 192, 2, batch_first=True, dropout=0.1)
        self.head = nn.Linear(192, WORDS)

    def forward(self, words: torch.Tensor) -> torch.Tensor:
        return self.head(self.layers(self.table(words))[0])


class Attentive(nn.Module):
    """A word model of four transformer blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(WORDS, 96)
        block = nn.TransformerEncoderLayer(96, 4, 192, dropout=0.1, batch_first=True)
        self.blocks = nn.TransformerEncoder(block, 4, enable_nested_tensor=False)
        self.head = nn.Linear(96, WORDS)

    def forward(self, words: torch.Tensor) -> torch.Tensor:
        return self.head(self.blocks(self.table(words)))


def steps_of(model: nn.Module) -> tuple[Callable[[], None], torch.optim.Optimizer]:
    """A training step, and its optimizer."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    words = torch.randint(0, WORDS, (BATCH, LENGTH))

    def step() -> None:
        scores = model(words[:, :-1])
        loss = F.cross_entropy(scores.reshape(-1, WORDS), words[:, 1:].reshape(-1))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step, optimizer


def block(step: Callable[[], None], steps: int) -> float:
    """Seconds of CPU time for some steps, after three that do not count: first looks cost more."""
    for _ in range(3):
        step()
    began = time.process_time()
    for _ in range(steps):
        step()
    return time.process_time() - began


def compare(kind: type[nn.Module], blocks: int, steps: int) -> tuple[float, float]:
    """Median ratio of a step that listens to one that does not, and seconds of the latter."""
    torch.manual_seed(0)
    step, optimizer = steps_of(kind())
    block(step, 2 * steps)
    ratios, plain = [], []
    for number in range(blocks):
        order = (True, False) if number % 2 else (False, True)
        seconds = {}
        for listens in order:
            with sg.attach(optimizer, clip="norm:1.0", find_nan=listens):
                seconds[listens] = block(step, steps)
        ratios.append(seconds[True] / seconds[False])
        plain.append(seconds[False] / steps)
    return statistics.median(ratios), statistics.median(plain)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.nan_origin", description=__doc__)
    parser.add_argument("--blocks", type=int, default=60)
    parser.add_argument("--steps", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print("| model | ms a step | with find_nan |\n|---|---|---|")
    for kind in (Recurrent, Attentive):
        ratio, plain = compare(kind, arguments.blocks, arguments.steps)
        print(f"| {kind.__name__} | {1e3 * plain:.1f} | {ratio:.4f} |", flush=True)


if __name__ == "__main__":
    main()
