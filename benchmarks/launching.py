"""`steadygrad run` against the plain script: its start, and the steps of trainings.

Each script is a process of its own, plain and observed in turn. A training tells the time of its
own steps, without the first ones, in which modules are loaded: what those cost is in the start.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.rows import Row, rows_of
from benchmarks.timing import Contender

ALLOWED_SHARE, ALLOWED_START = 1.03, 0.5  # of a step; seconds
ALLOWED_ODD = 1.05  # of a step of the trainings in `ODD`, which take a few milliseconds
FIRST = 64
SCRIPT = """
import math
import sys
import time
import torch
from torch import nn
torch.manual_seed(0)
torch.set_num_threads({threads})
{setup}
for step in range({steps}):
    if step == min({first}, {steps} - 1):
        began = time.{clock}()
{turn}
print(time.{clock}() - began, file=sys.stderr)
"""


def dense(layers: int, width: int, rows: int, clip: str = "") -> tuple[str, str]:
    """A stack of linear layers: what stands before the loop, and one turn of it."""
    setup = f"""
layers = [(nn.Linear({width}, {width}), nn.Tanh()) for _ in range({layers})]
model = nn.Sequential(*[layer for pair in layers for layer in pair])
optimizer = torch.optim.Adam(model.parameters())
data = torch.randn({rows}, {width})
"""
    turn = f"""
optimizer.zero_grad()
(model(data) - data).square().mean().backward()
{clip}
optimizer.step()
"""
    return setup, turn


CLIP = "nn.utils.clip_grad_norm_(model.parameters(), 1.0)"
SKIP_GRAM = (
    """
words = nn.Embedding(2000, 32, sparse=True), nn.Embedding(2000, 32, sparse=True)
optimizer = torch.optim.SparseAdam([table.weight for table in words], lr=5e-3)
text = torch.randint(2000, (20_000,))
""",
    """
centre = torch.randint(5, len(text) - 5, (256,))
near = words[1](text[centre + torch.randint(1, 5, (256,))])
far = words[1](torch.randint(2000, (256, 5)))
here = words[0](text[centre])
close = nn.functional.logsigmoid((here * near).sum(1))
apart = nn.functional.logsigmoid(-(far @ here[:, :, None]).squeeze(2)).sum(1)
optimizer.zero_grad()
(-(close + apart).mean()).backward()
optimizer.step()
""",
)
PINN = (
    """
model = nn.Sequential(nn.Linear(1, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 1))
optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
ends = torch.tensor([[-1.0], [1.0]])
""",
    """
x = (2 * torch.rand(128, 1) - 1).requires_grad_()
(slope,) = torch.autograd.grad(model(x).sum(), x, create_graph=True)
(bend,) = torch.autograd.grad(slope.sum(), x, create_graph=True)
inside = (bend + math.pi**2 * torch.sin(math.pi * x)).square().mean()
optimizer.zero_grad()
(inside + 50 * model(ends).square().mean()).backward()
optimizer.step()
""",
)
CRITIC = (
    """
maker = nn.Sequential(nn.Linear(4, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 2))
critic = nn.Sequential(nn.Linear(2, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 1))
of_maker, of_critic = (torch.optim.Adam(net.parameters(), 1e-4) for net in (maker, critic))
""",
    """
real, fake = torch.randn(128, 2), maker(torch.randn(128, 4))
mix = torch.rand(128, 1)
between = (mix * real + (1 - mix) * fake.detach()).requires_grad_()
(slope,) = torch.autograd.grad(critic(between).sum(), between, create_graph=True)
loss = critic(fake.detach()).mean() - critic(real).mean()
of_critic.zero_grad()
(loss + 10 * (slope.norm(dim=1) - 1).square().mean()).backward()
of_critic.step()
of_maker.zero_grad()
(-critic(fake).mean()).backward()
of_maker.step()
""",
)
ODD = (SKIP_GRAM, PINN, CRITIC)
TRAININGS = {
    "16 tensors": dense(layers=8, width=256, rows=1024),
    "80 tensors": dense(layers=40, width=96, rows=256),
    "80 tensors, a clip call": dense(layers=40, width=96, rows=256, clip=CLIP),
    "sparse gradients (skip-gram)": SKIP_GRAM,
    "derivatives of inputs (PINN)": PINN,
    "a gradient penalty (WGAN-GP)": CRITIC,
}


def script_of(training: tuple[str, str], **facts: object) -> str:
    """The source of a script that tells the time of its own steps."""
    setup, turn = training
    return SCRIPT.format(setup=setup, turn=textwrap.indent(turn, "    "), **facts)


def run_script(script: Path, observed: bool) -> tuple[float, float]:
    """One process: seconds from its start to its end, and those that it tells of its steps."""
    out = script.with_suffix(".db")
    around = (
        ["-m", "steadygrad", "run", "--quiet", "--force", "--out", str(out)] if observed else []
    )
    # As pip installs it: with bytecode. Without, each start compiles the package again.
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    began = time.perf_counter()
    command = [sys.executable, *around, str(script)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
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
        script.write_text(script_of(TRAININGS["16 tensors"], steps=2, **facts))
        whole = [seconds for seconds, _ in least(script, 2 * rounds)]
        target = 1 + ALLOWED_START / whole[0]
        yield from rows_of(
            threads, "steadygrad run", "a script of two steps", contenders(target), whole
        )
        for name, training in TRAININGS.items():
            script.write_text(script_of(training, steps=steps + FIRST, **facts))
            a_step = [seconds / steps for _, seconds in least(script, rounds)]
            case = f"a step, {name}"
            allowed = ALLOWED_ODD if training in ODD else ALLOWED_SHARE
            yield from rows_of(threads, "steadygrad run", case, contenders(allowed), a_step)
