"""`steadygrad run` against the plain script: its start, and the steps of trainings.

Each script is a process of its own, plain and observed in turn. A training tells the time of its
own steps, without the first ones, in which modules are loaded: what those cost is in the start.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.rows import Row, rows_of
from benchmarks.timing import Contender

ALLOWED_SHARE, ALLOWED_START = 1.03, 0.5  # of a step; seconds
FIRST = 64
TRAINING = """
import sys
import time
import torch
from torch import nn
torch.manual_seed(0)
torch.set_num_threads({threads})
layers = [(nn.Linear({width}, {width}), nn.Tanh()) for _ in range({layers})]
model = nn.Sequential(*[layer for pair in layers for layer in pair])
optimizer = torch.optim.Adam(model.parameters())
data = torch.randn({rows}, {width})
for step in range({steps}):
    if step == min({first}, {steps} - 1):
        began = time.{clock}()
    optimizer.zero_grad()
    (model(data) - data).square().mean().backward()
    {clip}
    optimizer.step()
print(time.{clock}() - began, file=sys.stderr)
"""
CLIP = "nn.utils.clip_grad_norm_(model.parameters(), 1.0)"
TRAININGS = {
    "16 tensors": {"layers": 8, "width": 256, "rows": 1024, "clip": ""},
    "80 tensors": {"layers": 40, "width": 96, "rows": 256, "clip": ""},
    "80 tensors, a clip call": {"layers": 40, "width": 96, "rows": 256, "clip": CLIP},
}


def run_script(script: Path, observed: bool) -> tuple[float, float]:
    """One process: seconds from its start to its end, and those that it tells of its steps."""
    out = script.with_suffix(".db")
    around = (
        ["-m", "steadygrad", "run", "--quiet", "--force", "--out", str(out)] if observed else []
    )
    began = time.perf_counter()
    command = [sys.executable, *around, str(script)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return time.perf_counter() - began, float(done.stderr.split()[-1])


def least(script: Path, rounds: int) -> list[tuple[float, float]]:
    """The least of both times, plain and observed."""
    found = [(run_script(script, False), run_script(script, True)) for _ in range(rounds)]
    return [tuple(map(min, zip(*times, strict=True))) for times in zip(*found, strict=True)]


def contenders(target: float) -> list[Contender]:
    """Names and goal; they are not run by themselves."""
    observed = Contender("steadygrad run script.py", run_script, target=round(target, 3))
    return [Contender("python script.py", run_script), observed]


def all_rows(threads: int, steps: int, clock: str, rounds: int) -> Iterator[Row]:
    """Start and steps, plain and observed."""
    clocks = {"wall": "perf_counter", "cpu": "process_time"}
    facts = {"threads": threads, "first": FIRST, "clock": clocks[clock]}
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / "script.py"
        script.write_text(TRAINING.format(steps=2, **facts, **TRAININGS["16 tensors"]))
        whole = [seconds for seconds, _ in least(script, 4 * rounds)]
        target = 1 + ALLOWED_START / whole[0]
        yield from rows_of(
            threads, "steadygrad run", "a script of two steps", contenders(target), whole
        )
        for name, sizes in TRAININGS.items():
            script.write_text(TRAINING.format(steps=steps + FIRST, **facts, **sizes))
            a_step = [seconds / steps for _, seconds in least(script, rounds)]
            case = f"a step, {name}"
            yield from rows_of(threads, "steadygrad run", case, contenders(ALLOWED_SHARE), a_step)
