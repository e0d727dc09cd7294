"""Scripts that know nothing of steadygrad, run by ``steadygrad run --find-nan``.

The body of each function is a script of its own, written to a file and run there; ``# origin``
stands on its line at fault. Held out like `origin_heldout`. Imports stand in the bodies
since those are whole scripts.
"""

from __future__ import annotations

import inspect
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Callable
from pathlib import Path

from steadygrad import open_run
from steadygrad.runlog.origin import Origin
from steadygrad.vocabulary import NAN_ORIGIN

SCRIPTS: dict[str, Callable[[], None]] = {}


def script(function: Callable[[], None]) -> Callable[[], None]:
    """Enter a script."""
    SCRIPTS[function.__name__] = function
    return function


def text_of(function: Callable[[], None]) -> str:
    """The script: the function's body."""
    lines = inspect.getsource(function).splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("def ")) + 1
    return textwrap.dedent("\n".join(lines[start:])) + "\n"


def run(name: str) -> tuple[Origin | None, int]:
    """Run a script; the first origin in its run file, and the line that it should name."""
    text = text_of(SCRIPTS[name])
    marked = [i for i, line in enumerate(text.splitlines(), 1) if line.endswith("# origin")]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f"{name}.py")
        path.write_text(text, encoding="utf-8")
        words = ["-m", "steadygrad", "run", "--find-nan", "--out", "run.db", path.name]
        subprocess.run([sys.executable, *words], cwd=folder, capture_output=True, check=False)
        events = open_run(Path(folder, "run.db")).events
    origins = [Origin.from_json(event.data) for event in events if event.kind == NAN_ORIGIN]
    (line,) = marked
    return (origins[0] if origins else None), line


@script
def weights_moved_by_hand() -> None:
    import torch

    torch.manual_seed(1)
    w = torch.randn(4, 2, requires_grad=True)
    for step in range(6):
        x = torch.randn(8, 4) * (0.0 if step == 4 else 1.0)
        out = x @ w
        loss = (out / out.norm(dim=1, keepdim=True)).sum()  # origin
        loss.backward()
        with torch.no_grad():
            w -= 0.1 * w.grad
            w.grad.zero_()


@script
def loader_and_accumulation() -> None:
    import torch
    from torch import nn
    from torch.utils.data import DataLoader, TensorDataset

    def main() -> None:
        torch.manual_seed(2)
        x, y = torch.randn(48, 6), torch.randint(0, 3, (48,))
        x[40] = 0.0
        model = nn.Sequential(nn.Linear(6, 8, bias=False), nn.ReLU(), nn.Linear(8, 3, bias=False))
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        for i, (a, b) in enumerate(DataLoader(TensorDataset(x, y), batch_size=8)):
            scores = model(a)
            scores = scores / scores.abs().amax(dim=1, keepdim=True)  # origin
            loss = nn.functional.cross_entropy(scores, b) / 2
            loss.backward()
            if i % 2:
                nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                optimizer.zero_grad()

    main()


@script
def two_players() -> None:
    import torch
    from torch import nn

    torch.manual_seed(3)
    g, d = nn.Linear(2, 3), nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    og, od = torch.optim.Adam(g.parameters(), 1e-3), torch.optim.Adam(d.parameters(), 1e-3)
    for step in range(5):
        real, fake = torch.randn(6, 3), g(torch.randn(6, 2))
        od.zero_grad()
        push = 200.0 if step == 3 else 0.0
        sure = torch.sigmoid(d(real) - push)
        loss = -(torch.log(sure) + torch.log(1 - torch.sigmoid(d(fake.detach())))).mean()  # origin
        loss.backward()
        od.step()
        og.zero_grad()
        nn.functional.softplus(-d(fake)).mean().backward()
        og.step()


@script
def searched_with_closures() -> None:
    import torch

    torch.manual_seed(4)
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.LBFGS([weight], lr=0.5, max_iter=4)
    data, goal = torch.randn(10, 3), torch.zeros(10)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        residual = data @ weight - goal
        loss = residual.square().sum() + (weight - weight.detach()).norm(p=2).pow(0.5)  # origin
        loss.backward()
        return loss

    for _ in range(2):
        optimizer.step(closure)


@script
def mixed_precision() -> None:
    import torch
    from torch import nn

    torch.manual_seed(5)
    model = nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 1))
    optimizer, scaler = torch.optim.SGD(model.parameters(), lr=1e-2), torch.amp.GradScaler("cpu")
    for step in range(6):
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            p = torch.sigmoid(model(torch.randn(8, 4)).float() + (1e3 if step == 3 else 0.0))
            loss = -(torch.log1p(-p)).mean()  # origin
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()


@script
def attention_without_keys() -> None:
    import math

    import torch
    from torch import nn

    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.qkv, self.out = nn.Linear(6, 18), nn.Linear(6, 2)

        def forward(self, x: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
            q, k, v = self.qkv(x).chunk(3, dim=-1)
            scores = q @ k.transpose(-2, -1) / math.sqrt(6)
            scores = scores.masked_fill(~keep[:, None, :], float("-inf"))
            weights = scores.softmax(dim=-1)  # origin
            return self.out(weights @ v).mean(1)

    torch.manual_seed(6)
    model = Attention()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for step in range(5):
        keep = torch.ones(4, 5, dtype=torch.bool)
        keep[2] = step != 3
        loss = model(torch.randn(4, 5, 6), keep).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


@script
def gradients_assigned() -> None:
    import torch
    from torch import nn

    torch.manual_seed(7)
    model = nn.Linear(4, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(5):
        out = model(torch.randn(6, 4)) * (0.0 if step == 3 else 1.0)
        loss = out.square().sum(1).sqrt().mean()  # origin
        weights = list(model.parameters())
        for weight, grad in zip(weights, torch.autograd.grad(loss, weights), strict=True):
            weight.grad = grad
        optimizer.step()


@script
def recurrent_over_batches() -> None:
    import torch
    from torch import nn

    class Gate(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.read = nn.GRUCell(3, 5), nn.Linear(5, 1)

        def forward(self, x: torch.Tensor, h: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            for t in range(x.shape[1]):
                h = self.inner(x[:, t], h)
                h = h + h * h * h * 1e4  # origin
            return self.read(h), h

    torch.manual_seed(8)
    model, h = Gate(), torch.full((4, 5), 1e-4)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-6)
    for _ in range(6):
        out, h = model(torch.randn(4, 3, 3), h.detach())
        optimizer.zero_grad()
        torch.tanh(out).mean().backward()
        optimizer.step()
