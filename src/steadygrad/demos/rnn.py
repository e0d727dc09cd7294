"""A vanilla RNN reads handwritten digits one pixel at a time.

Pixel by pixel, because that makes 64 multiplications by one matrix out of an
8 x 8 picture: the gradient of the first pixel has gone through all of them, and
grows or shrinks like a power. The matrix starts orthogonal times 1.1, so that
its spectral radius is 1.1 exactly. The data is scikit-learn's, real and local.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from steadygrad.errors import needed_for

with needed_for("steadygrad demo", "demo"):
    import torch
    from sklearn.datasets import load_digits

import steadygrad.torch as sg
from steadygrad.runlog import RunWriter

PIXELS, CLASSES, HIDDEN = 64, 10, 64
BATCH, LEARNING_RATE, MOMENTUM = 64, 0.03, 0.9
RADIUS = 1.1
HELD_OUT = 397


@dataclass(frozen=True)
class DemoOutcome:
    """How one training ended.

    Attributes:
        path: its run file.
        clip: the spec it was clipped by.
        accuracy: share of held-out digits read right, 0 to 1.
    """

    path: Path
    clip: str
    accuracy: float


class PixelReader(torch.nn.Module):
    """An RNN over the pixels and a linear layer on its last state."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = torch.nn.RNN(1, HIDDEN, nonlinearity="relu", batch_first=True)
        self.head = torch.nn.Linear(HIDDEN, CLASSES)
        weights = dict(self.rnn.named_parameters())
        torch.nn.init.orthogonal_(weights["weight_hh_l0"], gain=RADIUS)
        torch.nn.init.normal_(weights["weight_ih_l0"])

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        """Scores ``[batch, 10]`` for pictures ``[batch, 64]``."""
        states, _ = self.rnn(pictures.unsqueeze(-1))
        scores: torch.Tensor = self.head(states[:, -1])
        return scores


def use_one_thread() -> None:
    """Compute on one thread: matrices this small lose time to a second one."""
    torch.set_num_threads(1)


def digits() -> tuple[torch.Tensor, torch.Tensor]:
    """The 1,797 pictures ``[n, 64]`` in 0..1 and their digits ``[n]``, in a fixed random order."""
    data: Any = load_digits()
    order = np.random.default_rng(0).permutation(len(data.target))
    pictures = torch.tensor(data.data[order] / 16.0, dtype=torch.float32)
    return pictures, torch.tensor(data.target[order])


def train(
    clip: str, path: Path, *, steps: int, seed: int, on_step: Callable[[], object] = lambda: None
) -> DemoOutcome:
    """Train once under a clipping policy and record the run.

    The seed fixes the weights and the batches, so that runs differ in ``clip`` alone.

    Args:
        clip: a spec.
        path: the run file to write; an earlier run there is replaced.
        steps: number of optimizer steps.
        seed: of weights and batches.
        on_step: called after each step.

    Returns:
        How it ended.
    """
    pictures, targets = digits()
    torch.manual_seed(seed)
    model = PixelReader()
    batches = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE, momentum=MOMENTUM)
    writer = RunWriter(path, info=_info(clip, seed), force=True)
    with sg.attach(optimizer, clip=clip, model=model, run=writer) as steady:
        for _ in range(steps):
            chosen = torch.randint(0, len(targets) - HELD_OUT, (BATCH,), generator=batches)
            loss = torch.nn.functional.cross_entropy(model(pictures[chosen]), targets[chosen])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            steady.observe_loss(loss)
            optimizer.step()
            on_step()
    accuracy = _accuracy(model, pictures[-HELD_OUT:], targets[-HELD_OUT:])
    writer.update_info(results={"Test accuracy": f"{100 * accuracy:.1f} %"}, exit="ok")
    writer.close()
    return DemoOutcome(path, clip, accuracy)


def _info(clip: str, seed: int) -> dict[str, object]:
    return {
        "command": ["steadygrad", "demo"],
        "script": "steadygrad demo",
        "framework": "torch",
        "versions": {"torch": str(torch.__version__)},
        "device": "cpu",
        "seed": seed,
        "policy": clip,
        "optimizers": [{"class": "SGD", "index": 0}],
    }


@torch.no_grad()
def _accuracy(model: PixelReader, pictures: torch.Tensor, targets: torch.Tensor) -> float:
    return float((model(pictures).argmax(dim=1) == targets).double().mean())
