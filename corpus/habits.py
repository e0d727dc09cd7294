"""Healthy trainings that look odd: what people do on purpose, and no detector should accuse.

Each stalls, jumps, is noisy or has zero gradients somewhere, for a good reason.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import replace

import torch
from architectures import Batch, Knobs, Task
from torch import Tensor, nn
from torch.nn import functional as F
from training import Setup

Make = Callable[[str, int], Setup]


def generator(seed: int, step: int) -> torch.Generator:
    return torch.Generator().manual_seed(1000 * seed + step)


def relabelled(share: float) -> Make:
    """A share of the labels is drawn anew, at every step; the classes are those of the batch."""

    def make(architecture: str, seed: int) -> Setup:
        def batch(step: int, b: Batch) -> Batch:
            labels = b[-1].flatten()
            drawn = torch.rand(len(labels), generator=generator(seed, step)) < share
            other = labels[torch.randperm(len(labels), generator=generator(seed, step))]
            return (*b[:-1], torch.where(drawn, other, labels).view(b[-1].shape))

        return Setup(batch=batch)

    return make


def scheduled(factor: Callable[[int], float]) -> Make:
    return lambda a, seed: Setup(schedule=factor)


def cosine(period: int) -> Callable[[int], float]:
    """From 1 to nearly 0 in a period, then again."""
    return lambda step: 0.5 * (1 + math.cos(math.pi * (step % period) / period))


def rising(step: int) -> float:
    return min(1.0, (step + 1) / 20)


def drop_out(task: Task) -> None:
    """Seven of ten units are dropped behind every activation."""
    for module in task.model.modules():
        if isinstance(module, nn.ReLU):
            module.register_forward_hook(lambda m, args, out: F.dropout(out, 0.7))


def few_rows(step: int, batch: Batch) -> Batch:
    return tuple(part[:2] for part in batch)


def fine_tune(task: Task) -> None:
    """The trunk was trained before and stays; a new head is learned."""
    (player,) = task.players
    optimizer = torch.optim.Adam(player.module.parameters(), lr=task.lr)
    for step in range(60):
        optimizer.zero_grad(set_to_none=True)
        player.loss(task.batch(step)).backward()
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    *trunk, head = [m for m in task.model.modules() if list(m.parameters(recurse=False))]
    for module in trunk:
        module.requires_grad_(False)
    head.reset_parameters()  # type: ignore[operator]


def with_teacher(task: Task) -> None:
    """Beside the labels, a slow average of the model itself is followed."""
    (player,) = task.players
    teacher = copy.deepcopy(task.model).requires_grad_(False)
    plain = player.loss

    @torch.no_grad()
    def follow() -> None:
        for slow, fast in zip(teacher.parameters(), task.model.parameters(), strict=True):
            slow.lerp_(fast, 0.05)

    def loss(batch: Batch) -> Tensor:
        follow()
        told = teacher(batch[0]).softmax(-1)
        return plain(batch) + F.cross_entropy(task.model(batch[0]), told)

    player.loss = loss


def easy_first(step: int, batch: Batch) -> Batch:
    """Half of the classes at first, then all."""
    easy = batch[-1] < 5
    return batch if step >= 50 else tuple(part[easy] for part in batch)


def one_against_all(step: int, batch: Batch) -> Batch:
    """One row in ten is of the rare class."""
    return (batch[0], (batch[1] == 3).long())


def noisy_inputs(architecture: str, seed: int) -> Setup:
    def batch(step: int, b: Batch) -> Batch:
        noise = torch.randn(b[0].shape, generator=generator(seed, step))
        return (b[0] + 0.7 * noise, *b[1:])

    return Setup(batch=batch)


def zero_head(task: Task) -> None:
    """The last layer starts at zero, as is often advised: no other gets a gradient at first."""
    last = [m for m in task.model.modules() if list(m.parameters(recurse=False))][-1]
    with torch.no_grad():
        for parameter in last.parameters():
            parameter.zero_()


def sparse_inputs(step: int, batch: Batch) -> Batch:
    """Only the brightest pixels, and the right half is always dark."""
    x = (batch[0] > 0.6).float()
    x[:, 32:] = 0
    return (x, *batch[1:])


def setup(**changes: object) -> Make:
    return lambda architecture, seed: replace(Setup(), **changes)  # type: ignore[arg-type]


HABITS: dict[str, tuple[tuple[str, ...], Make]] = {
    "label_noise": (("mlp", "cnn", "gru", "transformer", "experts"), relabelled(0.3)),
    "warm_restarts": (
        ("mlp", "cnn", "lstm", "transformer", "denoiser", "unet"), scheduled(cosine(25))),
    "cosine": (("mlp", "gru", "autoencoder", "vae", "seq2seq", "flow"), scheduled(cosine(100))),
    "warm_up": (("transformer", "lstm", "resnet", "dilated"), scheduled(rising)),
    "drop_out": (("mlp", "cnn", "autoencoder", "vae"), setup(build=drop_out)),
    "few_rows": (
        ("mlp", "cnn", "rnn", "embeddings", "siamese", "denoiser"),
        setup(batch=few_rows, lr_factor=0.3)),
    "decay": (
        ("mlp", "cnn", "gru", "transformer", "unet", "experts"),
        setup(optimizer="adamw", decay=1.0)),
    "fine_tuning": (("mlp", "cnn", "gru", "resnet", "dilated"), setup(build=fine_tune)),
    "teacher": (("mlp", "cnn", "gru", "resnet", "sets"), setup(build=with_teacher)),
    "curriculum": (("mlp", "cnn", "gru", "resnet"), setup(batch=easy_first)),
    "imbalance": (("mlp", "cnn", "rnn", "resnet"), setup(batch=one_against_all)),
    "noisy_inputs": (("mlp", "cnn", "autoencoder", "vae", "siamese", "unet"), noisy_inputs),
    "zero_head": (
        ("mlp", "cnn", "transformer", "resnet", "unet", "seq2seq"), setup(build=zero_head)),
    "sparse_inputs": (("mlp", "gru", "autoencoder"), setup(batch=sparse_inputs)),
    "deep_relu": (("mlp", "siamese", "denoiser"), setup(knobs=Knobs(depth=6))),
}  # fmt: skip
"""Variant -> (architectures, setup)."""
