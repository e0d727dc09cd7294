"""`python -m benchmarks.overhead`: where the time goes that `attach` adds to a training step.

A step's work evicts the instructions and data of whatever ran before it, so each part is timed
inside real steps, by timers around its functions. The timers cost some microseconds a call
themselves: "own account" is what the library counts when there are none.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import statistics
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

import steadygrad.torch as sg
from benchmarks.steps import Lstm, Transformer
from steadygrad.kernels import native
from steadygrad.torch.gradients import measuring
from steadygrad.torch.record import journal, recording
from steadygrad.torch.step import clipper, engine, table

PARTS: dict[str, tuple[Any, str]] = {
    "follow the optimizer's groups": (table.ParameterTable, "refresh"),
    "gather gradients": (table.ParameterTable, "batch"),
    "call the kernel": (native, "try_read"),
    "measure, without the kernel": (measuring, "read_whole"),
    "statistics": (clipper.Clipper, "measure"),
    "decide": (clipper.Memory, "decide"),
    "act": (clipper.Clipper, "act"),
    "sample weights and activations": (recording.OptimizerRecorder, "sample"),
    "hand over to the writer": (journal, "hand_over"),
    "finish the record": (engine.Engine, "_record"),
    "the rest of a step": (engine.Engine, "before"),
}


class Timers:
    """Timers around functions, each without what other timers inside it have counted."""

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = defaultdict(list)
        self._inside: list[float] = []

    def put_around(self, label: str, owner: Any, name: str) -> None:
        """Replace a function by a timed one."""
        original = getattr(owner, name)

        def timed(*args: Any, **kwargs: Any) -> Any:
            began = time.perf_counter()
            self._inside.append(0.0)
            try:
                return original(*args, **kwargs)
            finally:
                spent = time.perf_counter() - began
                self.seconds[label].append(spent - self._inside.pop())
                if self._inside:
                    self._inside[-1] += spent

        setattr(owner, name, timed)


def train(kind: type[Lstm | Transformer], records: bool, steps: int) -> tuple[list[float], float]:
    """Seconds that the library counts for each step, and the median step's."""
    torch.manual_seed(0)
    model, batch = kind(), kind.batch
    data, labels = torch.randn(batch, 32, 32), torch.randint(10, (batch,))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    own, whole = [], []
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run.db" if records else None
        with sg.attach(optimizer, clip="norm:1.0", model=model, run=run) as steady:
            for _ in range(steps):
                began, before = time.perf_counter(), steady.overhead_seconds
                optimizer.zero_grad()
                nn.functional.cross_entropy(model(data), labels).backward()
                optimizer.step()
                own.append(steady.overhead_seconds - before)
                whole.append(time.perf_counter() - began)
    return own, statistics.median(whole)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.overhead", description=__doc__)
    parser.add_argument("--steps", type=int, default=600)
    steps = parser.parse_args().steps
    torch.set_num_threads(1)
    for records in (False, True):
        for kind in (Lstm, Transformer):
            own, step = train(kind, records, steps)
            name = f"{kind.__name__}, {'recording' if records else 'attach alone'}"
            median, mean = statistics.median(own) * 1e6, statistics.mean(own[1:]) * 1e6
            print(
                f"{name}: of a step of {step * 1e3:.1f} ms, by its own account {median:.0f} us in "
                f"the median, {mean:.0f} us on average, {own[0] * 1e3:.1f} ms more in the first"
            )
    timers = Timers()
    for label, (owner, function) in PARTS.items():
        timers.put_around(label, owner, function)
    for kind in (Lstm, Transformer):
        timers.seconds.clear()
        train(kind, True, steps)
        print(f"\n{kind.__name__}, recording, by part (median of its calls, us; calls)")
        for label in PARTS:
            spent = timers.seconds[label] or [0.0]  # a step that C hands over calls no writer here
            calls = len(timers.seconds[label])
            print(f"  {label:32s}{statistics.median(spent) * 1e6:7.1f}{calls:6d}")


if __name__ == "__main__":
    main()
