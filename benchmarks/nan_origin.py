"""`python -m benchmarks.nan_origin`: what listening for the origin of a NaN costs a step.

One model, one optimizer, short blocks of steps with and without ``find_nan`` in turn, on
the CPU clock. Each block gives its least step: every step costs the same work, and what else the
machine does comes on top of it. The ratio of neighbouring blocks is taken,
since a busy machine slows both alike, and the median of those. The interval is where that
median lies in 95 % of samples drawn anew from the same ratios: a difference smaller than it was
not measured. Page faults are counted too: a tape that kept memory from being used again would
show there.

The last column is another measurement, which a busy machine moves less: the time inside the
finder's own functions in a step, without the calls that they hand on, and with clocks around them.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import contextlib
import functools
import random
import resource
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import nn

import steadygrad.torch as sg
from steadygrad.torch.origin.finder import Finder
from steadygrad.torch.origin.tape import Tape, _Listener

WORDS, BATCH, LENGTH = 200, 16, 33
SAMPLES, FIRST = 2000, 16

Step = Callable[[], None]


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


class Residual(nn.Module):
    """A small layer between a norm and an activation, added to what came in: four modules."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.layer, self.act = nn.LayerNorm(width), nn.Linear(width, width), nn.GELU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.act(self.layer(self.norm(x)))


class Deep(nn.Module):
    """A word model of 50 residual layers: more than 200 calls of modules a step."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Embedding(WORDS, 48), *(Residual(48) for _ in range(50)), nn.Linear(48, WORDS)
        )

    def forward(self, words: torch.Tensor) -> torch.Tensor:
        return self.layers(words)


def of_words(kind: type[nn.Module]) -> tuple[Step, torch.optim.Optimizer]:
    """A step of a word model, and its optimizer."""
    model = kind()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    words = torch.randint(0, WORDS, (BATCH, LENGTH))

    def step() -> None:
        scores = model(words[:, :-1])
        loss = F.cross_entropy(scores.reshape(-1, WORDS), words[:, 1:].reshape(-1))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step, optimizer


def of_tensors() -> tuple[Step, torch.optim.Optimizer]:
    """A step without any module: six layers by hand, 22 operations, each of them noted."""
    generator = torch.Generator().manual_seed(0)
    weights = [nn.Parameter(torch.randn(384, 384, generator=generator) / 20) for _ in range(6)]
    biases = [nn.Parameter(torch.zeros(384)) for _ in range(6)]
    optimizer = torch.optim.AdamW([*weights, *biases], lr=1e-3)
    x, target = (torch.randn(256, 384, generator=generator) for _ in range(2))

    def step() -> None:
        hidden = x
        for weight, bias in zip(weights, biases, strict=True):
            hidden = torch.tanh(hidden @ weight + bias)
        loss = (hidden - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step, optimizer


TRAININGS: dict[str, Callable[[], tuple[Step, torch.optim.Optimizer]]] = {
    "two LSTM layers": lambda: of_words(Recurrent),
    "four transformer blocks": lambda: of_words(Attentive),
    "203 small modules": lambda: of_words(Deep),
    "22 bare tensor operations": of_tensors,
}


@dataclass
class Costs:
    """What blocks of steps cost, with and without.

    Attributes:
        ratios: CPU time of a block that listens to its neighbour's that does not.
        seconds: CPU time of a step that does not.
        faults: page faults a step, by whether it listens.
        inside: seconds of a step in the finder's own functions.
    """

    ratios: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    faults: dict[bool, list[float]] = field(default_factory=lambda: {False: [], True: []})
    inside: float = 0.0

    def interval(self) -> tuple[float, float]:
        """Where the median of the ratios lies, 95 of 100 times."""
        draw = random.Random(0)
        count = len(self.ratios)
        medians = sorted(
            statistics.median(draw.choices(self.ratios, k=count)) for _ in range(SAMPLES)
        )
        return medians[SAMPLES // 40], medians[-SAMPLES // 40]

    def row(self, name: str) -> str:
        """A row of the table."""
        low, high = self.interval()
        faults = [statistics.mean(self.faults[listens]) for listens in (False, True)]
        return (
            f"| {name} | {1e3 * statistics.median(self.seconds):.1f} "
            f"| {statistics.median(self.ratios):.4f} | {low:.4f} to {high:.4f} "
            f"| {faults[0]:.0f}, {faults[1]:.0f} | {1e6 * self.inside:.0f} |"
        )


def block(step: Step, steps: int) -> tuple[float, float]:
    """CPU seconds of the least step, and page faults a step, in a block.

    The first steps do not count: the first looks cost more, and Python runs code that is new to it,
    as every function is that was changed for a block, slowly at first.
    """
    for _ in range(FIRST):
        step()
    faults = _faults()
    seconds = []
    for _ in range(steps):
        began = time.process_time()
        step()
        seconds.append(time.process_time() - began)
    return min(seconds), (_faults() - faults) / steps


def _faults() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def compare(step: Step, optimizer: torch.optim.Optimizer, blocks: int, steps: int) -> Costs:
    """Run blocks with and without in turn."""
    costs = Costs()
    block(step, 2 * steps)
    for number in range(blocks):
        seconds = {}
        for listens in (True, False) if number % 2 else (False, True):
            with sg.attach(optimizer, clip="norm:1.0", find_nan=listens):
                seconds[listens], faults = block(step, steps)
            costs.faults[listens].append(faults)
        costs.ratios.append(seconds[True] / seconds[False])
        costs.seconds.append(seconds[False])
    return costs


class Clock:
    """Adds up the time inside functions, less that in the functions which they hand on to."""

    def __init__(self) -> None:
        self.seconds = self._handed_on = 0.0
        self._known: dict[object, Callable[..., object]] = {}

    def around(self, function: Callable[..., Any], hands_on: int | None = None) -> Any:
        """A function of the finder, timed.

        Args:
            function: it.
            hands_on: the place of the argument that it calls; None for none.
        """

        @functools.wraps(function)
        def timed(*args: Any, **kwargs: Any) -> object:
            if hands_on is not None:
                args = (*args[:hands_on], self._outside(args[hands_on]), *args[hands_on + 1 :])
            before, began = self._handed_on, time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                own = time.perf_counter() - began - (self._handed_on - before)
                self.seconds += own

        return timed

    def _outside(self, function: Callable[..., Any]) -> Callable[..., object]:
        if function not in self._known:  # the same one at every call: the tape knows it by identity

            @functools.wraps(function)
            def outside(*args: object, **kwargs: object) -> object:
                began = time.perf_counter()
                try:
                    return function(*args, **kwargs)
                finally:
                    self._handed_on += time.perf_counter() - began

            self._known[function] = outside
        return self._known[function]


@contextlib.contextmanager
def timed_finder() -> Iterator[Clock]:
    """Time the finder's functions."""
    clock = Clock()
    timed: list[tuple[Any, str, int | None]] = [
        (_Listener, "__torch_function__", 1),
        (Tape, "module", 1),
        *((Tape, name, None) for name in ("backward", "stepped", "listen", "rest")),
        (Finder, "check", None),
    ]
    with contextlib.ExitStack() as ending:
        for owner, name, hands_on in timed:
            instead = clock.around(getattr(owner, name), hands_on)
            ending.enter_context(mock.patch.object(owner, name, instead))
        yield clock


def inside(step: Step, optimizer: torch.optim.Optimizer, steps: int = 150) -> float:
    """Seconds of the median step in the finder's own functions."""
    found = []
    with timed_finder() as clock, sg.attach(optimizer, clip="norm:1.0", find_nan=True):
        for number in range(FIRST + steps):
            clock.seconds = 0.0
            step()
            if number >= FIRST:
                found.append(clock.seconds)
    return statistics.median(found)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.nan_origin", description=__doc__)
    parser.add_argument("--blocks", type=int, default=40, help="pairs of blocks a model")
    parser.add_argument("--steps", type=int, default=24, help="steps a block")
    parser.add_argument("--only", default="", help="models whose name holds this")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(
        "| a step of | ms | with find_nan | 95 % interval | page faults a step, without and with "
        "| us in the finder |"
    )
    print("|---|---|---|---|---|---|")
    for name, make in TRAININGS.items():
        if arguments.only in name:
            torch.manual_seed(0)
            training = make()
            costs = compare(*training, arguments.blocks, arguments.steps)
            costs.inside = inside(*training)
            print(costs.row(name), flush=True)


if __name__ == "__main__":
    main()
