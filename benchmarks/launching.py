"""`steadygrad run` against the plain script: its start, and a training of a minute."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from benchmarks.rows import Row, rows_of
from benchmarks.timing import Contender, best_of

START = "import torch\n"
TRAINING = """
import torch
from torch import nn
torch.manual_seed(0)
model = nn.Sequential(*[layer for _ in range(8) for layer in (nn.Linear(256, 256), nn.Tanh())])
optimizer = torch.optim.Adam(model.parameters())
data = torch.randn(1024, 256)
for _ in range({steps}):
    optimizer.zero_grad()
    (model(data) - data).square().mean().backward()
    optimizer.step()
"""


def run_script(script: Path, observed: bool) -> None:
    """One process, from its start to its end."""
    out = script.with_suffix(".db")
    around = (
        ["-m", "steadygrad", "run", "--quiet", "--force", "--out", str(out)] if observed else []
    )
    subprocess.run([sys.executable, *around, str(script)], check=True, capture_output=True)


def all_rows(threads: int, steps: int, clock: str, rounds: int) -> Iterator[Row]:
    """Start and training, plain and observed."""
    with tempfile.TemporaryDirectory() as folder:
        for case, code, least, target in (
            ("start (import torch)", START, 5, None),
            (f"training, {steps} steps", TRAINING.format(steps=steps), rounds, 1.03),
        ):
            script = Path(folder) / f"{case[:5]}.py"
            script.write_text(code)
            contenders = [
                Contender("python script.py", partial(run_script, script, False)),
                Contender(
                    "steadygrad run script.py", partial(run_script, script, True), target=target
                ),
            ]
            times = best_of(contenders, 0, clock, least)
            yield from rows_of(threads, "steadygrad run", case, contenders, times)
