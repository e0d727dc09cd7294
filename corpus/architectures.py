"""Small trainings of fifteen kinds, each learnable in a few hundred milliseconds.

A `Task` is a model, its players (one a loss and an optimizer: a GAN has two) and its
batches. `Knobs` says how the model is built, so that a fault can ask any task for
another activation, depth or initialisation. Data is real where that is cheap
(scikit-learn's digits, the standard library's own source) and synthetic elsewhere.
"""

from __future__ import annotations

import argparse
import functools
import inspect
import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

Batch = tuple[Tensor, ...]


class Steep(nn.Module):
    """A ReLU of slope 8: it multiplies whatever passes, both ways."""

    def forward(self, x: Tensor) -> Tensor:
        return 8.0 * F.relu(x)


ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "steep": Steep,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
}


@dataclass(frozen=True)
class Knobs:
    """How a model is built; the defaults are healthy."""

    act: str = "relu"
    depth: int = 3
    width: int = 48
    norm: bool = False
    recurrent_gain: float = 0.0
    nonlinearity: str = "tanh"
    length: int = 16


@dataclass
class Player:
    """One loss and the module that an optimizer moves to lower it."""

    module: nn.Module
    loss: Callable[[Batch], Tensor]


@dataclass
class Task:
    """A training: what runs, on what, with which ordinary learning rate."""

    model: nn.Module
    players: list[Player]
    batch: Callable[[int], Batch]
    lr: float
    optimizer: str = "adam"
    extra: dict[str, Any] = field(default_factory=dict)
    score: Callable[[Batch], Tensor] | None = None
    """What falls as it learns, where the first player's loss does not show that."""


@functools.cache
def digits() -> tuple[Tensor, Tensor]:
    images, labels = load_digits(return_X_y=True)
    x = torch.tensor(images, dtype=torch.float32) / 8 - 1
    return x, torch.tensor(labels, dtype=torch.long)


@functools.cache
def characters() -> tuple[Tensor, int]:
    text = inspect.getsource(argparse)[:20000]
    vocabulary = sorted(set(text))
    codes = {c: i for i, c in enumerate(vocabulary)}
    return torch.tensor([codes[c] for c in text]), len(vocabulary)


def rows(data: tuple[Tensor, ...], seed: int, size: int = 32) -> Callable[[int], Batch]:
    """Random batches of paired rows, the same for the same seed."""
    generator = torch.Generator().manual_seed(seed)

    def batch(step: int) -> Batch:
        chosen = torch.randint(0, len(data[0]), (size,), generator=generator)
        return tuple(part[chosen] for part in data)

    return batch


def windows(seed: int, length: int = 24, size: int = 16) -> Callable[[int], Batch]:
    """Random windows of text, and the same a character later."""
    generator = torch.Generator().manual_seed(seed)
    codes, _ = characters()

    def batch(step: int) -> Batch:
        starts = torch.randint(0, len(codes) - length - 1, (size,), generator=generator)
        place = starts[:, None] + torch.arange(length + 1)
        return codes[place[:, :-1]], codes[place[:, 1:]]

    return batch


def stack(sizes: list[int], knobs: Knobs) -> nn.Sequential:
    """Linear layers with activations (and normalisation) between them."""
    layers: list[nn.Module] = []
    for index, (a, b) in enumerate(itertools.pairwise(sizes)):
        layers.append(nn.Linear(a, b))
        if index < len(sizes) - 2:
            layers += [nn.LayerNorm(b)] if knobs.norm else []
            layers.append(ACTIVATIONS[knobs.act]())
    return nn.Sequential(*layers)


def classifier(model: nn.Module) -> Callable[[Batch], Tensor]:
    return lambda batch: F.cross_entropy(model(batch[0]).flatten(0, -2), batch[-1].flatten())


def mlp(seed: int, knobs: Knobs) -> Task:
    model = stack([64, *[knobs.width] * knobs.depth, 10], knobs)
    return Task(model, [Player(model, classifier(model))], rows(digits(), seed), 3e-3)


def cnn(seed: int, knobs: Knobs) -> Task:
    act = ACTIVATIONS[knobs.act]
    layers: list[nn.Module] = [nn.Unflatten(1, (1, 8, 8))]
    for index in range(knobs.depth):
        layers.append(nn.Conv2d(16 if index else 1, 16, 3, padding=1))
        layers += [nn.BatchNorm2d(16)] if knobs.norm else []
        layers.append(act())
    model = nn.Sequential(*layers, nn.MaxPool2d(2), nn.Flatten(), nn.Linear(256, 10))
    return Task(model, [Player(model, classifier(model))], rows(digits(), seed), 3e-3)


class Sequence(nn.Module):
    """A recurrent classifier of digits, read a few pixels at a time."""

    def __init__(self, kind: str, knobs: Knobs) -> None:
        super().__init__()
        self.length = knobs.length
        options = {"nonlinearity": knobs.nonlinearity} if kind == "RNN" else {}
        cell = getattr(nn, kind)
        self.rnn = cell(64 // knobs.length, knobs.width, batch_first=True, **options)
        self.head = nn.Linear(knobs.width, 10)
        if knobs.recurrent_gain:
            nn.init.orthogonal_(self.rnn.weight_hh_l0, gain=knobs.recurrent_gain)

    def forward(self, x: Tensor) -> Tensor:
        out, _ = self.rnn(x.unflatten(1, (self.length, -1)))
        return self.head(out[:, -1])


def sequence(kind: str) -> Callable[[int, Knobs], Task]:
    def build(seed: int, knobs: Knobs) -> Task:
        model = Sequence(kind, knobs)
        return Task(model, [Player(model, classifier(model))], rows(digits(), seed), 3e-3)

    return build


class Characters(nn.Module):
    """A character model: an embedding, an LSTM, a head."""

    def __init__(self, vocabulary: int, knobs: Knobs) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary, 24)
        self.rnn = nn.LSTM(24, knobs.width, batch_first=True)
        self.head = nn.Linear(knobs.width, vocabulary)

    def forward(self, codes: Tensor) -> Tensor:
        return self.head(self.rnn(self.embed(codes))[0])


def lstm(seed: int, knobs: Knobs) -> Task:
    model = Characters(characters()[1], knobs)
    return Task(model, [Player(model, classifier(model))], windows(seed), 1e-2)


class Block(nn.Module):
    """Pre-norm attention and feed-forward, with residuals."""

    def __init__(self, width: int, act: str) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.feed = nn.Sequential(
            nn.Linear(width, 2 * width), ACTIVATIONS[act](), nn.Linear(2 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm1(x)).unflatten(-1, (3, 2, -1)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.proj(mixed.transpose(1, 2).flatten(2))
        return x + self.feed(self.norm2(x))


class Transformer(nn.Module):
    """A character model of two blocks."""

    def __init__(self, vocabulary: int, knobs: Knobs) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary, 32)
        self.place = nn.Embedding(24, 32)
        self.blocks = nn.Sequential(*[Block(32, knobs.act) for _ in range(2)])
        self.head = nn.Linear(32, vocabulary)

    def forward(self, codes: Tensor) -> Tensor:
        place = torch.arange(codes.shape[1])
        return self.head(self.blocks(self.embed(codes) + self.place(place)))


def transformer(seed: int, knobs: Knobs) -> Task:
    model = Transformer(characters()[1], knobs)
    return Task(model, [Player(model, classifier(model))], windows(seed), 3e-3)


def gan(seed: int, knobs: Knobs) -> Task:
    """A ring of eight Gaussians; the discriminator plays first."""
    maker = stack([8, *[32] * min(knobs.depth, 3), 2], Knobs(width=32))
    judge = stack([2, *[32] * knobs.depth, 1], knobs)
    generator = torch.Generator().manual_seed(seed)

    def batch(step: int) -> Batch:
        angle = torch.randint(0, 8, (32,), generator=generator) * (torch.pi / 4)
        ring = torch.stack([angle.cos(), angle.sin()], 1)
        noise = torch.randn(32, 2, generator=generator)
        return ring + 0.1 * noise, torch.randn(32, 8, generator=generator)

    def judged(real: Tensor, fake: Tensor) -> Tensor:
        return F.softplus(-judge(real)).mean() + F.softplus(judge(fake)).mean()

    players = [
        Player(judge, lambda b: judged(b[0], maker(b[1]).detach())),
        Player(maker, lambda b: F.softplus(-judge(maker(b[1]))).mean()),
    ]

    return Task(nn.ModuleList([judge, maker]), players, batch, 1e-3)


def rl(seed: int, knobs: Knobs) -> Task:
    """Q-learning on a small random Markov decision process, with a frozen target network."""
    online = stack([12, *[knobs.width] * knobs.depth, 4], knobs)
    target = stack([12, *[knobs.width] * knobs.depth, 4], knobs)
    target.load_state_dict(online.state_dict())
    target.requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    moves = torch.randint(0, 12, (12, 4), generator=generator)
    rewards = torch.rand(12, 4, generator=generator)
    eye = torch.eye(12)
    extra: dict[str, Any] = {"discount": 0.5, "every": 10, "online": online, "target": target}

    def batch(step: int) -> Batch:
        if step and extra["every"] and step % extra["every"] == 0:
            target.load_state_dict(online.state_dict())
        state = torch.randint(0, 12, (32,), generator=generator)
        action = torch.randint(0, 4, (32,), generator=generator)
        return eye[state], action, rewards[state, action], eye[moves[state, action]]

    def loss(b: Batch) -> Tensor:
        bootstrap = online if not extra["every"] else target
        best = bootstrap(b[3]).detach().max(1).values
        q = online(b[0]).gather(1, b[1][:, None])[:, 0]
        return F.mse_loss(q, b[2] + extra["discount"] * best)

    return Task(online, [Player(online, loss)], batch, 3e-3, extra=extra)


class Factors(nn.Module):
    """Matrix factorisation: the score of a pair is a dot product of two rows."""

    def __init__(self) -> None:
        super().__init__()
        self.users, self.items = nn.Embedding(80, 12), nn.Embedding(100, 12)
        self.head = nn.Sequential(nn.Linear(12, 24), nn.ReLU(), nn.Linear(24, 1))

    def forward(self, users: Tensor, items: Tensor) -> Tensor:
        return self.head(self.users(users) * self.items(items))[:, 0]


def embeddings(seed: int, knobs: Knobs) -> Task:
    """Many rows of each table are never touched by a batch, some by none."""
    model = Factors()
    generator = torch.Generator().manual_seed(seed)
    taste = torch.randn(2, 100, 3, generator=generator)

    def batch(step: int) -> Batch:
        users = torch.randint(0, 60, (64,), generator=generator)
        items = torch.randint(0, 80, (64,), generator=generator)
        return users, items, ((taste[0, users] * taste[1, items]).sum(1) > 0).float()

    def loss(b: Batch) -> Tensor:
        return F.binary_cross_entropy_with_logits(model(b[0], b[1]), b[2])

    return Task(model, [Player(model, loss)], batch, 1e-2)


def autoencoder(seed: int, knobs: Knobs) -> Task:
    half = [48, 32, 16][: max(1, knobs.depth)] + [16] * max(0, knobs.depth - 3)
    model = stack([64, *half, 8, *half[::-1], 64], knobs)
    loss = lambda b: F.mse_loss(model(b[0]), b[0])  # noqa: E731
    return Task(model, [Player(model, loss)], rows((digits()[0],), seed), 3e-3)


class Residual(nn.Module):
    """Two convolutions with batch normalisation around a shortcut."""

    def __init__(self, act: str) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(16, 16, 3, padding=1, bias=False),
            nn.BatchNorm2d(16),
            ACTIVATIONS[act](),
            nn.Conv2d(16, 16, 3, padding=1, bias=False),
            nn.BatchNorm2d(16),
        )
        self.act = ACTIVATIONS[act]()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(x + self.body(x))


def resnet(seed: int, knobs: Knobs) -> Task:
    stem = [nn.Unflatten(1, (1, 8, 8)), nn.Conv2d(1, 16, 3, padding=1)]
    blocks = [Residual(knobs.act) for _ in range(2)]
    head = [nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(64, 10)]
    model = nn.Sequential(*stem, *blocks, *head)
    return Task(model, [Player(model, classifier(model))], rows(digits(), seed), 3e-3)


class Variational(nn.Module):
    """An encoder to a mean and a log variance, and a decoder from a sample."""

    def __init__(self, knobs: Knobs) -> None:
        super().__init__()
        self.encoder = stack([64, *[knobs.width] * knobs.depth, 16], knobs)
        self.decoder = stack([8, knobs.width, 64], knobs)

    def forward(self, x: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mean, log_variance = self.encoder(x).chunk(2, dim=1)
        return self.decoder(mean + noise * (log_variance / 2).exp()), mean, log_variance


def vae(seed: int, knobs: Knobs) -> Task:
    model = Variational(knobs)
    generator = torch.Generator().manual_seed(seed)
    images = rows((digits()[0],), seed)

    def batch(step: int) -> Batch:
        return images(step)[0], torch.randn(32, 8, generator=generator)

    def loss(b: Batch) -> Tensor:
        out, mean, log_variance = model(b[0], b[1])
        divergence = 0.5 * (mean**2 + log_variance.exp() - 1 - log_variance).sum(1).mean()
        return F.mse_loss(out, b[0]) + 1e-3 * divergence

    return Task(model, [Player(model, loss)], batch, 3e-3)


class Graph(nn.Module):
    """Two graph convolutions: neighbours are averaged, then mixed."""

    def __init__(self, edges: Tensor, knobs: Knobs) -> None:
        super().__init__()
        self.register_buffer("spread", edges / edges.sum(1, keepdim=True))
        self.first, self.second = nn.Linear(16, knobs.width), nn.Linear(knobs.width, 4)
        self.act = ACTIVATIONS[knobs.act]()

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.spread @ self.act(self.first(self.spread @ x)))


def graph(seed: int, knobs: Knobs) -> Task:
    """Nodes of four communities, told by noisy features and by who is linked to whom."""
    generator = torch.Generator().manual_seed(seed)
    kind = torch.arange(80) % 4
    chance = torch.where(kind[:, None] == kind[None], 0.3, 0.03)
    edges = torch.bernoulli(chance, generator=generator)
    edges = ((edges + edges.T + torch.eye(80)) > 0).float()
    features = torch.randn(80, 16, generator=generator) + F.one_hot(kind, 16) * 0.7
    model = Graph(edges, knobs)

    def batch(step: int) -> Batch:
        noise = 0.3 * torch.randn(80, 16, generator=generator)
        return features + noise, torch.randint(0, 80, (32,), generator=generator)

    def loss(b: Batch) -> Tensor:
        return F.cross_entropy(model(b[0])[b[1]], kind[b[1]])

    return Task(model, [Player(model, loss)], batch, 1e-2)


def policy(seed: int, knobs: Knobs) -> Task:
    """Policy gradients on a contextual bandit: the loss is no error, and may have either sign."""
    model = stack([12, *[knobs.width] * knobs.depth, 4], knobs)
    generator = torch.Generator().manual_seed(seed)
    best = torch.randint(0, 4, (12,), generator=generator)
    eye = torch.eye(12)

    def batch(step: int) -> Batch:
        state = torch.randint(0, 12, (64,), generator=generator)
        return eye[state], best[state], torch.rand(64, 1, generator=generator)

    def loss(b: Batch) -> Tensor:
        logs = F.log_softmax(model(b[0]), 1)
        action = (logs.detach().exp().cumsum(1) < b[2]).sum(1).clamp_max(3)
        reward = (action == b[1]).float()
        entropy = -(logs.exp() * logs).sum(1).mean()  # a policy that is certain learns no more
        surrogate = (logs.gather(1, action[:, None])[:, 0] * (reward - reward.mean())).mean()
        return -surrogate - 0.1 * entropy

    def missed(b: Batch) -> Tensor:
        return 1 - model(b[0]).softmax(1).gather(1, b[1][:, None]).mean()

    return Task(model, [Player(model, loss)], batch, 3e-3, score=missed)


class Tagger(nn.Module):
    """A tag for each character, read from both sides."""

    def __init__(self, vocabulary: int, knobs: Knobs) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary, 24)
        self.rnn = nn.GRU(24, knobs.width // 2, batch_first=True, bidirectional=True)
        self.head = nn.Linear(knobs.width // 2 * 2, 3)

    def forward(self, codes: Tensor) -> Tensor:
        return self.head(self.rnn(self.embed(codes))[0])


def tagger(seed: int, knobs: Knobs) -> Task:
    """Letter, space or something else: told by a table, so that any window can be labelled."""
    _, vocabulary = characters()
    text = inspect.getsource(argparse)[:20000]
    table = torch.tensor([2 if c.isalpha() else int(c.isspace()) for c in sorted(set(text))])
    model = Tagger(vocabulary, knobs)
    draw = windows(seed, length=12)
    batch = lambda step: (lambda b: (b[0], table[b[1]]))(draw(step))  # noqa: E731
    return Task(model, [Player(model, classifier(model))], batch, 3e-3)


ARCHITECTURES: dict[str, Callable[[int, Knobs], Task]] = {
    "mlp": mlp,
    "cnn": cnn,
    "rnn": sequence("RNN"),
    "lstm": lstm,
    "gru": sequence("GRU"),
    "transformer": transformer,
    "gan": gan,
    "rl": rl,
    "embeddings": embeddings,
    "autoencoder": autoencoder,
    "resnet": resnet,
    "vae": vae,
    "graph": graph,
    "policy": policy,
    "tagger": tagger,
    "reader": sequence("LSTM"),
}
"""Name -> builder of a task from a seed and knobs."""
