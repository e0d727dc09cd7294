"""Eight more trainings, of networks composed of parts: attention, skips, experts, couplings.

Made after the rules, which were not tuned on them: with two kinds of Keras model they are
the architectures that the corpus holds out. Data is small and synthetic, or digits.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from architectures import (
    ACTIVATIONS,
    Batch,
    Knobs,
    Player,
    Task,
    characters,
    classifier,
    digits,
    rows,
    stack,
    windows,
)
from torch import Tensor, nn
from torch.nn import functional as F


class Translator(nn.Module):
    """A GRU reads, another writes, and looks back by attention; it is told the last right sign."""

    def __init__(self, signs: int, width: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(signs + 1, 16)
        self.reader = nn.GRU(16, width, batch_first=True)
        self.writer = nn.GRU(16, width, batch_first=True)
        self.query = nn.Linear(width, width)
        self.head = nn.Linear(2 * width, signs)

    def forward(self, source: Tensor, told: Tensor) -> Tensor:
        read, state = self.reader(self.embed(source))
        written, _ = self.writer(self.embed(told), state)
        scores = self.query(written) @ read.transpose(1, 2) / read.shape[-1] ** 0.5
        return self.head(torch.cat([written, scores.softmax(-1) @ read], dim=-1))


def seq2seq(seed: int, knobs: Knobs) -> Task:
    """Strings of eight signs, to be written backwards."""
    signs, length = 12, 8
    model = Translator(signs, knobs.width)
    generator = torch.Generator().manual_seed(seed)

    def batch(step: int) -> Batch:
        source = torch.randint(0, signs, (16, length), generator=generator)
        target = source.flip(1)
        told = torch.cat([torch.full((16, 1), signs), target[:, :-1]], dim=1)
        return source, told, target

    def loss(b: Batch) -> Tensor:
        return F.cross_entropy(model(b[0], b[1]).flatten(0, 1), b[2].flatten())

    return Task(model, [Player(model, loss)], batch, 5e-3)


class UNet(nn.Module):
    """Down by pooling, up by interpolation, with a skip over the bottom."""

    def __init__(self, act: str) -> None:
        super().__init__()
        self.enter = nn.Sequential(nn.Conv2d(1, 12, 3, padding=1), ACTIVATIONS[act]())
        self.down = nn.Sequential(nn.Conv2d(12, 24, 3, padding=1), ACTIVATIONS[act]())
        self.bottom = nn.Sequential(nn.Conv2d(24, 12, 3, padding=1), ACTIVATIONS[act]())
        self.leave = nn.Sequential(nn.Conv2d(24, 12, 3, padding=1), ACTIVATIONS[act]())
        self.head = nn.Conv2d(12, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        wide = self.enter(x.unflatten(1, (1, 8, 8)))
        deep = self.bottom(self.down(F.max_pool2d(wide, 2)))
        joined = torch.cat([wide, F.interpolate(deep, scale_factor=2.0)], dim=1)
        return self.head(self.leave(joined)).flatten(1)


def unet(seed: int, knobs: Knobs) -> Task:
    """Digits under noise, to be cleaned."""
    model = UNet(knobs.act)
    generator = torch.Generator().manual_seed(seed)
    images = rows((digits()[0],), seed, size=24)

    def batch(step: int) -> Batch:
        (clean,) = images(step)
        return clean + 0.5 * torch.randn(clean.shape, generator=generator), clean

    return Task(model, [Player(model, lambda b: F.mse_loss(model(b[0]), b[1]))], batch, 3e-3)


def siamese(seed: int, knobs: Knobs) -> Task:
    """Pairs of digits by one encoder: the same draw together, others stand a margin apart."""
    encoder = stack([64, *[knobs.width] * knobs.depth, 8], knobs)
    generator = torch.Generator().manual_seed(seed)
    x, y = digits()
    places = [torch.nonzero(y == label)[:, 0] for label in range(10)]

    def batch(step: int) -> Batch:
        left = torch.randint(0, len(x), (32,), generator=generator)
        right = torch.randint(0, len(x), (32,), generator=generator)
        draw = torch.rand(16, generator=generator)
        for row in range(16):  # half of the pairs are of one digit
            among = places[int(y[left[row]])]
            right[row] = among[int(draw[row] * len(among))]
        return x[left], x[right], (y[left] == y[right]).float()

    def loss(b: Batch) -> Tensor:
        squared = (encoder(b[0]) - encoder(b[1])).square().sum(1)
        apart = F.relu(1.0 - torch.sqrt(squared + 1e-6)).square()
        return (b[2] * squared + (1 - b[2]) * apart).mean()

    return Task(encoder, [Player(encoder, loss)], batch, 3e-3)


class Experts(nn.Module):
    """Four small networks; a gate sends each row to two of them."""

    def __init__(self, knobs: Knobs) -> None:
        super().__init__()
        self.gate = nn.Linear(64, 4)
        self.experts = nn.ModuleList([stack([64, knobs.width // 2, 10], knobs) for _ in range(4)])

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        scores = self.gate(x)
        best = scores.topk(2, dim=1).indices
        kept = torch.full_like(scores, float("-inf")).scatter(1, best, scores.gather(1, best))
        each = torch.stack([expert(x) for expert in self.experts], dim=1)
        return (kept.softmax(1)[:, :, None] * each).sum(1), scores.softmax(1)


def experts(seed: int, knobs: Knobs) -> Task:
    model = Experts(knobs)

    def loss(b: Batch) -> Tensor:
        out, chances = model(b[0])
        uneven = 4 * chances.mean(0).square().sum() - 1
        return F.cross_entropy(out, b[1]) + 0.1 * uneven

    return Task(model, [Player(model, loss)], rows(digits(), seed), 5e-3)


class Flow(nn.Module):
    """Affine couplings in turn, and the log-density of what went in."""

    def __init__(self, knobs: Knobs) -> None:
        super().__init__()
        self.couplings = nn.ModuleList(
            [stack([1, knobs.width, knobs.width, 2], knobs) for _ in range(4)]
        )

    def forward(self, x: Tensor) -> Tensor:
        stretched = torch.zeros(len(x))
        for coupling in self.couplings:
            kept, moved = x[:, :1], x[:, 1:]
            log_scale, shift = coupling(kept).chunk(2, dim=1)
            log_scale = torch.tanh(log_scale)
            x = torch.cat([moved * log_scale.exp() + shift, kept], dim=1)
            stretched = stretched + log_scale[:, 0]
        return stretched - 0.5 * x.square().sum(1) - 1.8379


def flow(seed: int, knobs: Knobs) -> Task:
    """Two moons; the loss is a negative log-likelihood, and may go below 0."""
    model = Flow(knobs)
    generator = torch.Generator().manual_seed(seed)

    def batch(step: int) -> Batch:
        angle = torch.rand(64, generator=generator) * torch.pi
        side = torch.randint(0, 2, (64,), generator=generator) * 2.0 - 1
        x, y = side * angle.cos() + 0.5 * (1 - side), side * angle.sin() - 0.25 * side
        points = torch.stack([x - 0.5, y], 1)
        return (points + 0.05 * torch.randn(64, 2, generator=generator),)

    return Task(model, [Player(model, lambda b: -model(b[0]).mean())], batch, 3e-3)


def denoiser(seed: int, knobs: Knobs) -> Task:
    """Diffusion of a ring: which noise was added is guessed from the noisy point and its time."""
    model = stack([8, *[knobs.width] * knobs.depth, 2], knobs)
    generator = torch.Generator().manual_seed(seed)

    def batch(step: int) -> Batch:
        angle = torch.rand(64, generator=generator) * 2 * torch.pi
        time = torch.rand(64, 1, generator=generator)
        noise = torch.randn(64, 2, generator=generator)
        kept = (time * torch.pi / 2).cos()
        noisy = kept * torch.stack([angle.cos(), angle.sin()], 1) + (1 - kept**2).sqrt() * noise
        waves = torch.cat(
            [f(k * torch.pi * time) for k in (1, 2, 4) for f in (torch.sin, torch.cos)], 1
        )
        return torch.cat([noisy, waves], 1), noise

    return Task(model, [Player(model, lambda b: F.mse_loss(model(b[0]), b[1]))], batch, 3e-3)


class Dilated(nn.Module):
    """Causal convolutions that reach further with each layer, around a residual."""

    def __init__(self, vocabulary: int, knobs: Knobs) -> None:
        super().__init__()
        width = knobs.width // 2
        self.embed = nn.Embedding(vocabulary, width)
        self.layers = nn.ModuleList(
            [nn.Conv1d(width, width, 2, dilation=2**level) for level in range(4)]
        )
        self.act = ACTIVATIONS[knobs.act]()
        self.head = nn.Linear(width, vocabulary)

    def forward(self, codes: Tensor) -> Tensor:
        x = self.embed(codes).transpose(1, 2)
        for layer in self.layers:
            x = x + self.act(layer(F.pad(x, (layer.dilation[0], 0))))
        return self.head(x.transpose(1, 2))


def dilated(seed: int, knobs: Knobs) -> Task:
    model = Dilated(characters()[1], knobs)
    return Task(model, [Player(model, classifier(model))], windows(seed), 5e-3)


class Pooled(nn.Module):
    """A set: each member is embedded, the sum is read."""

    def __init__(self, knobs: Knobs) -> None:
        super().__init__()
        self.member = stack([2, knobs.width, knobs.width], knobs)
        self.whole = stack([knobs.width, knobs.width, 3], knobs)

    def forward(self, x: Tensor) -> Tensor:
        return self.whole(self.member(x).mean(1))


def sets(seed: int, knobs: Knobs) -> Task:
    """Clouds of 20 points: a disc, a ring or a cross."""
    model = Pooled(knobs)
    generator = torch.Generator().manual_seed(seed)

    def batch(step: int) -> Batch:
        kind = torch.randint(0, 3, (32,), generator=generator)
        points = torch.randn(32, 20, 2, generator=generator)
        ring = points / points.norm(dim=-1, keepdim=True)
        axis = torch.randint(0, 2, (32, 20), generator=generator)
        cross = points * F.one_hot(axis, 2)
        each = torch.stack([0.7 * points, ring, cross], 1)
        return each[torch.arange(32), kind], kind

    loss = functools.partial(_classified, model)
    return Task(model, [Player(model, loss)], batch, 5e-3)


def _classified(model: nn.Module, batch: Batch) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


COMPOSED: dict[str, Callable[[int, Knobs], Task]] = {
    "seq2seq": seq2seq,
    "unet": unet,
    "siamese": siamese,
    "experts": experts,
    "flow": flow,
    "denoiser": denoiser,
    "dilated": dilated,
    "sets": sets,
}
"""Name -> builder of a task from a seed and knobs."""
