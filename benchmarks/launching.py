"""`steadygrad run` against the plain script: its start, and the steps of trainings.

Each script is a process of its own. Starts are plain and observed in turn. Of a training a plain
and an observed process live side by side on one core and take turns of a few steps, so that
a change of the machine's pace hits both alike; what is compared is the processor time of all
threads of each in blocks of such turns, between turns too, where the observed one may still be
writing. The first block is left out: in it modules are loaded, and what those cost is in the start.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import statistics
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
ALLOWED_ODD = 1.05  # of a step of those in `ODD`, which take a few milliseconds, and in JAX
BLOCK = 64  # steps: as many as from one sampled step to the next, early in a run
TURN = 16  # steps: short, so that what else goes on in the machine meets both processes
IMPORTS = """
import math
import sys
import time
import torch
from torch import nn
torch.manual_seed(0)
torch.set_num_threads({threads})
"""
TURNS = """
while sys.stdin.readline():
    for _ in range({steps}):
{turn}
    print(time.process_time(), flush=True)
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


def jitted(widths: tuple[int, ...], rows: int) -> tuple[str, str]:
    """A perceptron in JAX, one compiled step a turn."""
    setup = f"""
import jax
import jax.numpy as jnp
import optax
widths = {widths}
keys = jax.random.split(jax.random.key(0), len(widths))
weights = [
    (jax.random.normal(key, shape) / shape[0] ** 0.5, jnp.zeros(shape[1]))
    for key, shape in zip(keys, zip(widths, widths[1:]))
]
inputs, labels = jax.random.normal(keys[-1], ({rows}, widths[0])), jnp.arange({rows}) % widths[-1]
optimizer = optax.adamw(1e-4)
state = optimizer.init(weights)

def loss_of(weights):
    x = inputs
    for weight, bias in weights[:-1]:
        x = jax.nn.gelu(x @ weight + bias)
    outputs = x @ weights[-1][0] + weights[-1][1]
    return optax.softmax_cross_entropy_with_integer_labels(outputs, labels).mean()

@jax.jit
def step(weights, state):
    loss, gradients = jax.value_and_grad(loss_of)(weights)
    updates, state = optimizer.update(gradients, state, weights)
    return optax.apply_updates(weights, updates), state, loss
"""
    turn = """
weights, state, loss = step(weights, state)
loss.block_until_ready()
"""
    return setup, turn


JITTED = {
    "JAX, 85,000 weights, 128 rows": jitted((64, 256, 256, 10), 128),
    "JAX, 1.3 M weights, 128 rows": jitted((256, 1024, 1024, 10), 128),
    "JAX, 4.2 M weights, 8 rows": jitted((1024, 1024, 1024, 1024, 1024), 8),
}
TRAININGS = {
    "16 tensors": dense(layers=8, width=256, rows=1024),
    "80 tensors": dense(layers=40, width=96, rows=256),
    "80 tensors, a clip call": dense(layers=40, width=96, rows=256, clip=CLIP),
    "sparse gradients (skip-gram)": SKIP_GRAM,
    "derivatives of inputs (PINN)": PINN,
    "a gradient penalty (WGAN-GP)": CRITIC,
    **JITTED,
}


def command_of(script: Path, observed: bool) -> list[str]:
    """The command that runs a script, plain or under `steadygrad run`."""
    out = script.with_suffix(".db")
    around = (
        ["-m", "steadygrad", "run", "--quiet", "--force", "--out", str(out)] if observed else []
    )
    return [sys.executable, *around, str(script)]


def environment() -> dict[str, str]:
    """As pip installs it: with bytecode. Without, each start compiles the package again."""
    return {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}


def start_and_end(script: Path, observed: bool) -> float:
    """Seconds from the start of a process to its end."""
    began = time.perf_counter()
    subprocess.run(command_of(script, observed), check=True, capture_output=True, env=environment())
    return time.perf_counter() - began


def blocks_in_turn(script: Path, blocks: int) -> list[tuple[float, float]]:
    """Seconds of each block of steps but the first, plain and observed, of two new processes."""
    with contextlib.ExitStack() as ending:
        processes = [
            ending.enter_context(
                subprocess.Popen(
                    command_of(script, observed),
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL,
                    text=True,
                    env=environment(),
                )
            )
            for observed in (False, True)
        ]
        ends: list[list[float]] = [[], []]
        for number in range((blocks + 1) * BLOCK // TURN):
            for one in (0, 1) if number % 2 else (1, 0):
                ends[one].append(end_of_turn(processes[one]))
        for process in processes:
            process.communicate()
    a_block = slice(BLOCK // TURN - 1, None, BLOCK // TURN)
    plain, observed = ([b - a for a, b in itertools.pairwise(times[a_block])] for times in ends)
    return list(zip(plain, observed, strict=True))


def end_of_turn(process: subprocess.Popen[str]) -> float:
    """Let a process take its turn; seconds of processor time it has used at the end of it."""
    assert process.stdin is not None
    assert process.stdout is not None
    print(file=process.stdin, flush=True)
    return float(process.stdout.readline())


def contenders(target: float) -> list[Contender]:
    """Names and goal; they are not run by themselves."""
    observed = Contender("steadygrad run script.py", str, target=round(target, 3))
    return [Contender("python script.py", str), observed]


def all_rows(threads: int, steps: int, pairs: int) -> Iterator[Row]:
    """Start and steps, plain and observed."""
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / "script.py"
        head = IMPORTS.format(threads=threads)
        setup, turn = TRAININGS["16 tensors"]
        script.write_text(f"{head}{setup}{turn}{turn}")
        starts = [[start_and_end(script, observed) for observed in (False, True)] for _ in range(8)]
        whole = [min(seconds) for seconds in zip(*starts, strict=True)]
        target = 1 + ALLOWED_START / whole[0]
        yield from rows_of(
            threads, "steadygrad run", "a script of two steps", contenders(target), whole
        )
        for name, (setup, turn) in TRAININGS.items():
            turns = TURNS.format(steps=TURN, turn=textwrap.indent(turn, " " * 8))
            script.write_text(f"{head}{setup}{turns}")
            found = [
                seconds
                for _ in range(pairs)
                for seconds in blocks_in_turn(script, max(1, steps // BLOCK))
            ]
            plain = statistics.median(seconds for seconds, _ in found) / BLOCK
            ratio = statistics.median(observed / plain for plain, observed in found)
            is_odd = (setup, turn) in ODD or name in JITTED
            allowed = ALLOWED_ODD if is_odd else ALLOWED_SHARE
            case = f"a step, {name}"
            a_step = [plain, ratio * plain]
            yield from rows_of(threads, "steadygrad run", case, contenders(allowed), a_step)
