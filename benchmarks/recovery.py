"""Does recovery pay? Small trainings that are struck, and their healthy twins.

    python -m benchmarks.recovery [--seeds 5] [--first 0] [--only NAME ...] [--work DIR] [--write]
    python -m benchmarks.recovery --seeds 0 --blocks 30 --write    what it costs

Every strategy sees the same weights, batches and faults. `nothing` is the bare loop; `clip` is
`attach(clip="norm:1.0")`, which also drops steps whose gradients are not finite; `skip` and
`ladder` are the same with `recover="skip:1000000"` and with `recover="auto"`. Finished runs in
DIR are reused; `--write` puts the tables that were made into docs/recovery.md.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import concurrent.futures
import itertools
import json
import math
import re
import statistics
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributions import Categorical
from torch.nn.functional import cross_entropy, mse_loss, softplus

import steadygrad.torch as sg
from steadygrad.errors import RecoveryError
from steadygrad.recovery.ring import SnapshotPace
from steadygrad.torch.recovery import snapshots as torch_snapshots

STEPS = 160
STRIKE = 80
"""Step of the first fault."""
LOOK = 8
"""Steps between looks at the loss on held-out data."""
STRATEGIES = ("nothing", "clip", "skip", "ladder")
TWINS = ("clip", "ladder")
"""Strategies whose runs that nothing strikes are looked at too."""
SPECS = {"skip": "skip:1000000", "ladder": "auto"}
PAGE = Path(__file__).parent.parent / "docs" / "recovery.md"

Batch = tuple[Tensor, Tensor]
Loss = Callable[[Tensor, Tensor], Tensor]


@dataclass
class Training:
    """What a fault can reach: model, optimizer, and the batch that comes next."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    loss: Loss
    batches: Iterator[Batch]
    held_out: Batch
    rates: list[float] = field(init=False)

    def __post_init__(self) -> None:
        self.rates = [group["lr"] for group in self.optimizer.param_groups]

    def rate(self, factor: float) -> None:
        """Set the learning rate to so many times its own."""
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * factor

    def level(self) -> float:
        """Loss on held-out data; inf where it is not finite."""
        self.model.eval()
        with torch.no_grad():
            value = float(self.loss(self.model(self.held_out[0]), self.held_out[1]))
        self.model.train()
        return value if math.isfinite(value) else math.inf


Make = Callable[[int], Training]
Fault = Callable[[Training, int, Batch], Batch]


@dataclass(frozen=True)
class Case:
    """A training and what strikes it."""

    name: str
    what: str
    make: Make
    fault: Fault
    clip: str = "norm:1.0"


SGD, Adam, AdamW = torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW

# -- trainings -------------------------------------------------------------------------------


class Recurrent(nn.Module):
    """GRU over symbols."""

    def __init__(self, symbols: int, width: int = 32) -> None:
        super().__init__()
        self.embedding = nn.Embedding(symbols, width)
        self.gru = nn.GRU(width, width, batch_first=True)
        self.head = nn.Linear(width, symbols)

    def forward(self, symbols: Tensor) -> Tensor:
        states: Tensor = self.gru(self.embedding(symbols))[0]
        made: Tensor = self.head(states)
        return made


class Attention(nn.Module):
    """A transformer over symbols that normalises after each sum, as the first one did."""

    def __init__(self, symbols: int, width: int = 32, layers: int = 2, length: int = 10) -> None:
        super().__init__()
        self.embedding = nn.Embedding(symbols, width)
        self.places = nn.Parameter(torch.randn(length, width) * 0.02)
        layer = nn.TransformerEncoderLayer(width, 4, 64, dropout=0.0, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.head = nn.Linear(width, symbols)
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(length))

    def forward(self, symbols: Tensor) -> Tensor:
        states = self.embedding(symbols) + self.places
        made: Tensor = self.head(self.layers(states, mask=self.mask, is_causal=True))
        return made


def of_symbols(outputs: Tensor, answers: Tensor) -> Tensor:
    """Mean cross entropy over all places."""
    return cross_entropy(outputs.flatten(0, 1), answers.flatten())


def text(seed: int, count: int, length: int = 10, symbols: int = 12) -> Iterator[Batch]:
    """Symbols, each drawn by the two before it."""
    rule = np.random.default_rng(0).dirichlet(np.full(symbols, 0.1), (symbols, symbols)).cumsum(-1)
    draws = np.random.default_rng(seed)
    while True:
        made = np.zeros((count, length + 1), np.int64)
        made[:, :2] = draws.integers(symbols, size=(count, 2))
        for place in range(2, length + 1):
            chances = rule[made[:, place - 2], made[:, place - 1]]
            made[:, place] = (chances < draws.random((count, 1))).sum(-1).clip(max=symbols - 1)
        whole = torch.from_numpy(made)
        yield whole[:, :-1], whole[:, 1:]


def taught(seed: int, count: int, shape: tuple[int, ...], classes: int) -> Iterator[Batch]:
    """Normal inputs with the answers of a random network; numbers for one class, else classes."""
    draws = torch.Generator().manual_seed(0)
    size = math.prod(shape)
    first, second = (torch.randn(a, b, generator=draws) for a, b in ((size, 32), (32, classes)))
    draws.manual_seed(seed)
    while True:
        inputs = torch.randn(count, *shape, generator=draws)
        answers = torch.tanh(inputs.flatten(1) @ first / size**0.5) @ second / 32**0.5
        yield inputs, answers if classes == 1 else answers.argmax(-1)


def training(
    model: nn.Module, optimizer: torch.optim.Optimizer, loss: Loss, data: Callable[..., object]
) -> Training:
    """A training whose held-out data comes from seed 0."""
    batches: Callable[[int, int], Iterator[Batch]] = data  # type: ignore[assignment]
    seed = torch.initial_seed() + 1
    return Training(model, optimizer, loss, batches(seed, 16), next(batches(0, 128)))


def regression(optimizer: Callable[..., torch.optim.Optimizer], **options: float) -> Make:
    """A network of three layers with numbers for answers."""

    def make(seed: int) -> Training:
        torch.manual_seed(seed)
        model = nn.Sequential(
            *(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 1))
        )
        data = lambda s, n: taught(s, n, (16,), 1)  # noqa: E731
        return training(model, optimizer(model.parameters(), **options), mse_loss, data)

    return make


def classifier(optimizer: Callable[..., torch.optim.Optimizer], **options: float) -> Make:
    """A network with BatchNorm and dropout, and classes for answers."""

    def make(seed: int) -> Training:
        torch.manual_seed(seed)
        model = nn.Sequential(
            *(nn.Linear(16, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Dropout(0.1)),
            *(nn.Linear(64, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 5)),
        )
        data = lambda s, n: taught(s, n, (16,), 5)  # noqa: E731
        return training(model, optimizer(model.parameters(), **options), cross_entropy, data)

    return make


def convolutions(optimizer: Callable[..., torch.optim.Optimizer], **options: float) -> Make:
    """Two convolutions and a linear layer."""

    def make(seed: int) -> Training:
        torch.manual_seed(seed)
        model = nn.Sequential(
            *(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 16, 3), nn.ReLU()),
            *(nn.Flatten(), nn.Linear(256, 5)),
        )
        data = lambda s, n: taught(s, n, (1, 8, 8), 5)  # noqa: E731
        return training(model, optimizer(model.parameters(), **options), cross_entropy, data)

    return make


def language(
    kind: Callable[[int], nn.Module], optimizer: Callable[..., torch.optim.Optimizer], lr: float
) -> Make:
    """The next symbol of a text."""

    def make(seed: int) -> Training:
        torch.manual_seed(seed)
        model = kind(12)
        return training(model, optimizer(model.parameters(), lr=lr), of_symbols, text)

    return make


def walks(seed: int, count: int, length: int = 10) -> Iterator[Batch]:
    """Steps of random walks, and where the walks are."""
    draws = torch.Generator().manual_seed(seed)
    while True:
        steps = torch.randn(count, length, 1, generator=draws)
        yield steps, steps.cumsum(1)


class Tracker(nn.Module):
    """A transformer over numbers, normalised after its sums."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.first = nn.Linear(1, width)
        layer = nn.TransformerEncoderLayer(width, 4, 64, dropout=0.0, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(width, 1)

    def forward(self, steps: Tensor) -> Tensor:
        places = torch.linspace(-1.0, 1.0, steps.shape[1])[:, None]
        made: Tensor = self.head(self.layers(self.first(steps) + places))
        return made


def tracking(lr: float) -> Make:
    """Where a random walk is."""

    def make(seed: int) -> Training:
        torch.manual_seed(seed)
        model = Tracker()
        return training(model, AdamW(model.parameters(), lr=lr), mse_loss, walks)

    return make


# -- faults ----------------------------------------------------------------------------------


def poisoned_inputs(factor: float, batches: int) -> Fault:
    """Inputs of some batches in a row are so many times too large."""
    return lambda t, step, batch: (
        (batch[0] * factor, batch[1]) if STRIKE <= step < STRIKE + batches else batch
    )


def poisoned_answers(factor: float, batches: int) -> Fault:
    """Answers of some batches in a row are so many times too large."""
    return lambda t, step, batch: (
        (batch[0], batch[1] * factor) if STRIKE <= step < STRIKE + batches else batch
    )


def poisoned_often(factor: float, every: int) -> Fault:
    """Answers of one batch in so many are so many times too large."""

    def fault(t: Training, step: int, batch: Batch) -> Batch:
        struck = step >= STRIKE and (step - STRIKE) % every == 0
        return (batch[0], batch[1] * factor) if struck else batch

    return fault


def too_hot(factor: float) -> Fault:
    """The learning rate is so many times too large from the first step on."""

    def fault(t: Training, step: int, batch: Batch) -> Batch:
        if step == 0:
            t.rate(factor)
        return batch

    return fault


def one_inf(t: Training, step: int, batch: Batch) -> Batch:
    """One input of one batch is inf."""
    if step == STRIKE:
        batch[0].view(-1)[7] = math.inf
    return batch


def burst(factor: float, steps: int, again: int = 0) -> Fault:
    """The learning rate is so many times too large for some steps, once or twice."""

    def fault(t: Training, step: int, batch: Batch) -> Batch:
        first = STRIKE <= step < STRIKE + steps
        second = again and STRIKE + again <= step < STRIKE + again + steps
        t.rate(factor if first or second else 1.0)
        return batch

    return fault


def flipped(tensor: Tensor, bit: int) -> None:
    """Flip one bit of the largest element."""
    flat = tensor.detach().view(-1)
    place = int(flat.abs().argmax())
    flat.view(torch.int32)[place] ^= 1 << bit


def bit_flip(bit: int, steps: tuple[int, ...]) -> Fault:
    """The highest bit of the exponent of one weight flips."""

    def fault(t: Training, step: int, batch: Batch) -> Batch:
        if step in steps:
            weights = [p for p in t.model.parameters() if p.ndim > 1]
            flipped(weights[steps.index(step) % len(weights)], bit)
        return batch

    return fault


def state_flip(t: Training, step: int, batch: Batch) -> Batch:
    """The highest bit of the exponent of one element of Adam's first moment flips."""
    if step == STRIKE:
        state = next(iter(t.optimizer.state.values()))
        flipped(state["exp_avg"], 30)
    return batch


def restart(factor: float) -> Fault:
    """Adam's state is gone, and the learning rate is so many times larger from there on."""

    def fault(t: Training, step: int, batch: Batch) -> Batch:
        if step == STRIKE:
            t.optimizer.state.clear()
            t.rate(factor)
        return batch

    return fault


CASES = (
    Case(
        "poisoned-inputs",
        "CNN, SGD: inputs x 1e4, 6 batches",
        convolutions(SGD, lr=0.05, momentum=0.9),
        poisoned_inputs(1e4, 6),
    ),
    Case(
        "poisoned-answers",
        "MLP regression, AdamW: answers x 1e4, 3 batches",
        regression(AdamW, lr=3e-3),
        poisoned_answers(1e4, 3),
    ),
    Case(
        "poisoned-shard",
        "MLP regression, AdamW: answers x 1e4, 14 batches",
        regression(AdamW, lr=3e-3),
        poisoned_answers(1e4, 14),
    ),
    Case(
        "poisoned-often",
        "MLP regression, AdamW: answers x 1e4, one batch in 5 to the end",
        regression(AdamW, lr=3e-3),
        poisoned_often(1e4, 5),
    ),
    Case(
        "poisoned-statistics",
        "MLP with BatchNorm, AdamW: inputs x 1e6, 3 batches",
        classifier(AdamW, lr=3e-3),
        poisoned_inputs(1e6, 3),
    ),
    Case(
        "inf-in-the-data",
        "MLP with BatchNorm, AdamW: one input of one batch is inf",
        classifier(AdamW, lr=3e-3),
        one_inf,
    ),
    Case(
        "rate-burst-sgd",
        "MLP regression, SGD: learning rate x 100, 4 steps",
        regression(SGD, lr=0.05, momentum=0.9),
        burst(100, 4),
    ),
    Case(
        "rate-burst-gru",
        "GRU, Adam: learning rate x 300, 4 steps, twice",
        language(Recurrent, Adam, 5e-3),
        burst(300, 4, 40),
    ),
    Case(
        "bit-flip-cnn",
        "CNN, SGD: bit 30 of one weight",
        convolutions(SGD, lr=0.05, momentum=0.9),
        bit_flip(30, (STRIKE,)),
    ),
    Case(
        "bit-flips-transformer",
        "transformer, AdamW: bit 30 of one weight, three times",
        language(Attention, AdamW, 2e-3),
        bit_flip(30, (STRIKE, 100, 120)),
    ),
    Case(
        "bit-flip-state",
        "MLP regression, Adam: bit 30 of one element of its first moment",
        regression(Adam, lr=3e-3),
        state_flip,
    ),
    Case(
        "no-warm-up",
        "transformer regression, AdamW: restarted without state or warm-up, learning rate x 30",
        tracking(2e-3),
        restart(30.0),
    ),
    Case(
        "too-hot",
        "transformer regression, AdamW: learning rate x 30 from the first step",
        tracking(2e-3),
        too_hot(30.0),
    ),
    Case(
        "too-hot-sgd",
        "MLP regression, SGD: learning rate x 100 from the first step",
        regression(SGD, lr=0.05, momentum=0.9),
        too_hot(100.0),
    ),
    Case(
        "restart-on-symbols",
        "transformer on symbols, AdamW: restarted without state or warm-up, rate x 30",
        language(Attention, AdamW, 2e-3),
        restart(30.0),
    ),
)


# -- healthy trainings whose losses are no descent ---------------------------------------------

Weights = list[float]
Attach = Callable[[nn.Module, torch.optim.Optimizer], None]


def adversaries(attach: Attach) -> list[nn.Module]:
    """A GAN that learns a ring of points."""
    sizes = ((4, 32, 2), (2, 32, 1))
    maker, critic = (
        nn.Sequential(nn.Linear(a, b), nn.ReLU(), nn.Linear(b, b), nn.ReLU(), nn.Linear(b, c))
        for a, b, c in sizes
    )
    ours, theirs = (Adam(each.parameters(), 2e-3, betas=(0.5, 0.999)) for each in (maker, critic))
    attach(maker, ours)
    attach(critic, theirs)
    for _ in range(TWIN_STEPS):
        angles = torch.rand(32) * 2 * math.pi
        real = torch.stack([angles.cos(), angles.sin()], 1) + 0.02 * torch.randn(32, 2)
        made = maker(torch.randn(32, 4))
        theirs.zero_grad()
        (softplus(-critic(real)) + softplus(critic(made.detach()))).mean().backward()  # type: ignore[no-untyped-call]
        theirs.step()
        ours.zero_grad()
        softplus(-critic(made)).mean().backward()  # type: ignore[no-untyped-call]
        ours.step()
    return [maker, critic]


def policy_gradient(attach: Attach) -> list[nn.Module]:
    """REINFORCE on a grid of 5 by 5: few episodes reach the goal, and those that do weigh much."""
    policy = nn.Sequential(nn.Linear(2, 32), nn.Tanh(), nn.Linear(32, 4))
    optimizer = Adam(policy.parameters(), 1e-2)
    attach(policy, optimizer)
    moves = torch.tensor([[0, 1], [1, 0], [0, -1], [-1, 0]])
    baseline = 0.0
    for _ in range(TWIN_STEPS):
        places = torch.zeros(8, 2, dtype=torch.int64)
        reward, logs, under_way = torch.zeros(8), torch.zeros(8), torch.ones(8)
        for _ in range(16):
            chances = Categorical(logits=policy(places / 2.0 - 1.0))
            chosen = chances.sample()  # type: ignore[no-untyped-call]
            logs = logs + under_way * chances.log_prob(chosen)  # type: ignore[no-untyped-call]
            places = (places + moves[chosen]).clamp(0, 4)
            arrived = (places == 4).all(1).float() * under_way
            reward += 10.0 * arrived - 0.1 * under_way
            under_way = under_way - arrived
        optimizer.zero_grad()
        (-logs * (reward - baseline)).mean().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        baseline += 0.1 * (float(reward.mean()) - baseline)
    return [policy]


def q_learning(attach: Attach) -> list[nn.Module]:
    """Q-learning on a chain of 8 places with a target that is renewed every 20 steps."""
    values, target = (
        nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 2)) for _ in range(2)
    )
    optimizer = AdamW(values.parameters(), 3e-3)
    attach(values, optimizer)
    seen: list[tuple[int, int, float, int]] = []
    place = 0
    for step in range(TWIN_STEPS):
        if step % 20 == 0:
            target.load_state_dict(values.state_dict())
        for _ in range(4):
            greedy = int(values(torch.eye(8)[place]).argmax())
            action = greedy if torch.rand(1) > 0.3 else int(torch.randint(2, (1,)))
            then = min(max(place + 2 * action - 1, 0), 7)
            seen.append((place, action, 10.0 * (then == 7), then))
            place = 0 if then == 7 else then
        chosen = [seen[int(n)] for n in torch.randint(len(seen), (16,))]
        before, actions, rewards, after = (torch.tensor(each) for each in zip(*chosen, strict=True))
        with torch.no_grad():
            wanted = rewards + 0.9 * target(torch.eye(8)[after]).amax(1) * (after != 7)
        told = values(torch.eye(8)[before])[torch.arange(16), actions]
        optimizer.zero_grad()
        mse_loss(told, wanted).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return [values]


TWIN_STEPS = 400
HEALTHY: dict[str, Callable[[Attach], list[nn.Module]]] = {
    "GAN": adversaries,
    "policy gradient": policy_gradient,
    "Q-learning": q_learning,
}
"""No fault strikes these: recovery must leave them alone."""


def healthy(name: str, seed: int, recover: str | None) -> tuple[list[str], Weights]:
    """What recovery did, and the weights at the end."""
    torch.manual_seed(seed)
    handles: list[sg.Steady] = []

    def attach(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        handles.append(sg.attach(optimizer, "norm:1.0", model, recover=recover))

    models = HEALTHY[name](attach)
    acts = [str(act) for steady in handles for act in steady.recoveries]
    for steady in handles:
        steady.detach()
    return acts, [v for m in models for p in m.parameters() for v in p.detach().flatten().tolist()]


def compared(name: str, seed: int, work: Path) -> tuple[int, bool]:
    """The ladder's acts, and whether it ends with the weights of clipping alone."""
    path = work / f"{name.replace(' ', '-')}-{seed}-twins.json"
    if not path.exists():
        clip, ladder = (healthy(name, seed, spec) for spec in (None, "auto"))
        path.write_text(json.dumps([len(ladder[0]), clip[1] == ladder[1]]))
    acts, same = json.loads(path.read_text())
    return acts, same


def healthy_rows(names: list[str], seeds: range, work: Path) -> list[list[str]]:
    """Of the table of healthy twins."""
    rows = []
    for name in names:
        acts, same = zip(*(compared(name, seed, work) for seed in seeds), strict=True)
        rows.append([name, str(sum(acts)), f"{sum(same)} of {len(seeds)}"])
    return rows


# -- one run ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Outcome:
    """What came of one run.

    Attributes:
        final: loss on held-out data at the end; inf where it is not finite.
        lost: steps dropped or rolled back.
        back: steps from the strike until held-out loss is what it was before; None for never.
        acts: of recovery.
        curve: held-out losses.
    """

    final: float
    lost: int
    back: int | None
    acts: tuple[str, ...]
    curve: tuple[float, ...]


def run(case: Case, seed: int, strategy: str, struck: bool) -> Outcome:
    """One training under one strategy."""
    t = case.make(seed)
    steady = None
    if strategy != "nothing":
        steady = sg.attach(t.optimizer, case.clip, t.model, recover=SPECS.get(strategy))
    curve = [t.level()]
    try:
        for step in range(STEPS):
            batch = next(t.batches)
            train(t, case.fault(t, step, batch) if struck else batch)
            if (step + 1) % LOOK == 0:
                curve.append(t.level())
    except RecoveryError:
        curve.append(t.level())
    acts = [] if steady is None else steady.recoveries
    if steady is not None:
        steady.detach()
    lost = set()
    for act in acts:
        lost |= set(range(act.step if act.to_step is None else act.to_step, act.step + 1))
    told = tuple(str(act) for act in acts)
    return Outcome(curve[-1], len(lost), steps_back(curve), told, tuple(curve))


def train(t: Training, batch: Batch) -> None:
    """One step."""
    t.optimizer.zero_grad()
    t.loss(t.model(batch[0]), batch[1]).backward()  # type: ignore[no-untyped-call]
    t.optimizer.step()


def steps_back(curve: list[float]) -> int | None:
    """Steps from the strike until the held-out loss is at most 2 % over what it was before."""
    before = min(curve[: STRIKE // LOOK + 1]) * 1.02
    after = [place for place, level in enumerate(curve) if place * LOOK > STRIKE]
    return next((place * LOOK - STRIKE for place in after if curve[place] <= before), None)


# -- tables ----------------------------------------------------------------------------------

Key = tuple[str, int, str, bool]


def one(key: Key) -> tuple[Key, Outcome]:
    """One run, by its key."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    case = next(case for case in CASES if case.name == key[0])
    return key, run(case, *key[1:])


def keys(names: list[str], seeds: range) -> Iterator[Key]:
    """Every run that the tables need."""
    for seed, name in itertools.product(seeds, names):
        yield from ((name, seed, strategy, True) for strategy in STRATEGIES)
        yield from ((name, seed, strategy, False) for strategy in TWINS)


def file_of(key: Key) -> str:
    """Where a run's outcome is kept: finished runs are not run again."""
    return "-".join([*map(str, key[:3]), "struck" if key[3] else "healthy"]) + ".json"


def kept(path: Path) -> Outcome:
    """An outcome from its file."""
    read = json.loads(path.read_text())
    lists = {name: tuple(read[name]) for name in ("acts", "curve")}
    return Outcome(read["final"], read["lost"], read["back"], **lists)


def tables(
    outcomes: dict[Key, Outcome], names: list[str], seeds: range, healthy: list[list[str]]
) -> str:
    """All tables, in Markdown; rows of more healthy trainings come last."""

    def of(name: str, strategy: str, struck: bool = True) -> list[Outcome]:
        return [outcomes[name, seed, strategy, struck] for seed in seeds]

    finals, steps, twins = [], [], []
    for name in names:
        struck = {strategy: of(name, strategy) for strategy in STRATEGIES}
        ladder = [each.final for each in struck["ladder"]]
        wins = [
            sum(a < b.final for a, b in zip(ladder, struck[other], strict=True))
            for other in ("nothing", "clip")
        ]
        row = [spread(each.final for each in of(name, "clip", False))]
        row += [spread(each.final for each in struck[strategy]) for strategy in STRATEGIES]
        finals.append([name, *row, f"{wins[0]} and {wins[1]} of {len(seeds)}"])
        lost = [middle(each.lost for each in struck[s]) for s in STRATEGIES[2:]]
        back = [middle(each.back for each in struck[s]) for s in STRATEGIES]
        steps.append([name, *lost, *back])
        clip, ladders = (of(name, strategy, False) for strategy in TWINS)
        acts = str(sum(len(each.acts) for each in ladders))
        same = sum(a.curve == b.curve for a, b in zip(clip, ladders, strict=True))
        twins.append([name, acts, f"{same} of {len(seeds)}"])
    what = [[case.name, case.what] for case in CASES if case.name in names]
    return "\n\n".join(
        [
            table(["case", "what strikes"], what),
            "Loss on held-out data at the end: median (least to largest) over the seeds; and for "
            "how many seeds the ladder ends lower than nothing, and than clipping:",
            table(["case", "healthy, clip", *STRATEGIES, "lower than nothing, clip"], finals),
            "Median steps lost (dropped or rolled back), and steps until the held-out loss is what "
            "it was before the strike:",
            table(["case", "skip lost", "ladder lost", *(f"{s} back" for s in STRATEGIES)], steps),
            "Healthy twins: the ladder's acts over all seeds, and runs whose losses are those of "
            "clipping alone, bit for bit:",
            table(["case", "acts", "the same as clipping"], twins + healthy),
        ]
    )


def table(head: list[str], rows: list[list[str]]) -> str:
    """Markdown."""
    lines = [head, ["-"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def spread(values: Iterable[float]) -> str:
    """Median, least and largest."""
    ordered = sorted(values)
    middle_one, least, most = statistics.median_low(ordered), ordered[0], ordered[-1]
    return f"{middle_one:.3g} ({least:.3g} to {most:.3g})"


def middle(values: Iterable[int | None]) -> str:
    """Median; never for None."""
    median = statistics.median_high([math.inf if v is None else v for v in values])
    return "never" if math.isinf(median) else f"{median:g}"


class Clocked(SnapshotPace):
    """Adds up what snapshots took."""

    seconds = 0.0

    def taken(self, step: int, cost: float) -> None:
        """A snapshot was taken."""
        Clocked.seconds += cost
        super().taken(step, cost)


def cost(width: int, blocks: int) -> list[float]:
    """What recovery costs a network of five linear layers.

    Returns:
        Milliseconds of a step with clipping, how many times that a step with `auto` takes, and
        the snapshots' share of the time with `auto`, in percent: at first, and later on.
    """
    sides = []
    with mock.patch.object(torch_snapshots, "SnapshotPace", Clocked):
        for recover in (None, "auto"):
            torch.manual_seed(0)
            layers = [[nn.Linear(width, width), nn.ReLU()] for _ in range(4)]
            model = nn.Sequential(*itertools.chain(*layers), nn.Linear(width, 1))
            optimizer = Adam(model.parameters(), 1e-4)
            steady = sg.attach(optimizer, "norm:1.0", model, recover=recover)
            sides.append((model, optimizer, steady))
    inputs = torch.randn(64, width)

    def block(model: nn.Module, optimizer: torch.optim.Optimizer) -> float:
        began = time.perf_counter()
        for _ in range(20):
            optimizer.zero_grad()
            model(inputs).square().mean().backward()
            optimizer.step()
        return time.perf_counter() - began

    pairs, snapshots = [], []
    for _ in range(blocks):
        before = Clocked.seconds
        pairs.append([block(*side[:2]) for side in sides])
        snapshots.append(Clocked.seconds - before)
    for side in sides:
        side[2].detach()
    seconds = [with_it for _, with_it in pairs]
    half = blocks // 2
    shares = [
        100 * sum(snapshots[part]) / sum(seconds[part]) for part in (slice(half), slice(half, None))
    ]
    ratio = sum(seconds[half:]) / sum(without for without, _ in pairs[half:])
    return [statistics.median(without for without, _ in pairs) * 50, ratio, *shares]


def costs(blocks: int) -> str:
    """The table of costs."""
    widths = {64: 10 * blocks, 512: 2 * blocks, 1024: blocks}
    rows = [[str(w), *(f"{v:.3g}" for v in cost(w, count))] for w, count in widths.items()]
    head = ["width", "ms a step with clipping", "times that with auto"]
    return table([*head, "snapshots: % of the time at first", "later on"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first", type=int, default=0, help="the first of the seeds")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--blocks", type=int, default=0, help="of the cost; 0 leaves it out")
    parser.add_argument("--work", type=Path, default=Path("recovery-runs"))
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    options.work.mkdir(exist_ok=True, parents=True)
    made = {}
    if options.seeds:
        made["proof"] = proof(options)
    if options.blocks:
        made["costs"] = costs(options.blocks)
    for name, text in made.items():
        print(text)
        if options.write:
            write(name, text)


def write(name: str, text: str) -> None:
    """Put a table into its place of the page."""
    between = re.compile(rf"(?<=<!-- {name} -->\n).*?(?=<!-- end -->)", re.DOTALL)
    PAGE.write_text(between.sub(lambda _: f"\n{text}\n\n", PAGE.read_text()))


def proof(options: argparse.Namespace) -> str:
    """The tables of what was asked for; runs that are not there yet are made."""
    names = [case.name for case in CASES if not options.only or case.name in options.only]
    seeds = range(options.first, options.first + options.seeds)
    wanted = list(keys(names, seeds))
    missing = [key for key in wanted if not (options.work / file_of(key)).exists()]
    with concurrent.futures.ProcessPoolExecutor(options.jobs) as pool:
        for done in concurrent.futures.as_completed([pool.submit(one, key) for key in missing]):
            key, outcome = done.result()
            (options.work / file_of(key)).write_text(json.dumps(asdict(outcome)))
    outcomes = {key: kept(options.work / file_of(key)) for key in wanted}
    others = [name for name in HEALTHY if not options.only or name in options.only]
    return tables(outcomes, names, seeds, healthy_rows(others, seeds, options.work))


if __name__ == "__main__":
    main()
