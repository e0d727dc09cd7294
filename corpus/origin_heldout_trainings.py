"""Whole trainings that break in ways of their own: optimizers, data, transforms, states.

Held out like `origin_heldout`. Each is a function that trains and gives the answer; the mark
``# origin`` stands in it, or in the class or function that it names.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, TensorDataset

import steadygrad.torch as sg
from steadygrad.runlog.origin import Origin


@dataclass(frozen=True)
class Training:
    """One training.

    Attributes:
        run: trains, and gives the origin.
        marked: whose source bears the mark.
        rows: rows that have to be named.
        phase: the phase that has to be named.
    """

    run: Callable[[], Origin | None]
    marked: Any
    rows: tuple[int, ...] = ()
    phase: str = ""


TRAININGS: dict[str, Training] = {}


def training(
    marked: Any = None, rows: tuple[int, ...] = (), phase: str = ""
) -> Callable[[Callable[[], Origin | None]], Callable[[], Origin | None]]:
    """Enter a training."""

    def enter(function: Callable[[], Origin | None]) -> Callable[[], Origin | None]:
        TRAININGS[function.__name__] = Training(function, marked or function, rows, phase)
        return function

    return enter


def net(inputs: int = 5, outputs: int = 3) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, 8), nn.Tanh(), nn.Linear(8, outputs))


def attached(model: Any, kind: Any = torch.optim.SGD, **options: Any) -> tuple[Any, Any]:
    parameters = model.parameters() if isinstance(model, nn.Module) else model
    optimizer = kind(parameters, lr=0.01)
    return optimizer, sg.attach(optimizer, clip="norm:1.0", find_nan=True, **options)


# -- data -------------------------------------------------------------------------------------


@training(rows=(5,), phase="input")
def loaded_row() -> Origin | None:
    values = torch.randn(32, 5)
    values[21, 3] = float("nan")
    loader = DataLoader(TensorDataset(values, torch.randn(32, 3)), batch_size=8)
    model = net()
    optimizer, steady = attached(model)
    with steady:
        for x, y in loader:
            optimizer.zero_grad()
            out = model(x)  # origin
            F.mse_loss(out, y).backward()
            optimizer.step()
        return steady.origin


@training(rows=(0, 6), phase="input")
def loaded_dictionary() -> Origin | None:
    rows = [{"x": torch.randn(5), "y": torch.randn(3)} for _ in range(24)]
    rows[8]["x"][0], rows[14]["x"][4] = torch.inf, -torch.inf
    model = net()
    optimizer, steady = attached(model, torch.optim.AdamW)
    with steady:
        for batch in DataLoader(rows, batch_size=8):
            optimizer.zero_grad()
            loss = F.smooth_l1_loss(model(batch["x"]), batch["y"])  # origin
            loss.backward()
            optimizer.step()
        return steady.origin


@training()
def standardised_in_the_loop() -> Origin | None:
    model = net()
    optimizer, steady = attached(model)
    with steady:
        for step in range(3):
            raw = torch.from_numpy(np.random.default_rng(step).normal(size=(8, 5))).float()
            if step == 2:
                raw = raw[:1]
            x = (raw - raw.mean(0)) / raw.std(0)  # origin
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()
        return steady.origin


@training(rows=(2,))
def zero_length_sequence() -> Origin | None:
    model = nn.GRU(4, 6, batch_first=True)
    optimizer, steady = attached(model, torch.optim.Adam)
    with steady:
        for step in range(3):
            lengths = torch.tensor([5, 3, 0 if step == 2 else 1, 2])
            out, _ = model(torch.randn(4, 5, 4))
            mask = torch.arange(5)[None, :] < lengths[:, None]
            pooled = (out * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)  # origin
            optimizer.zero_grad()
            pooled.square().mean().backward()
            optimizer.step()
        return steady.origin


@training()
def every_target_ignored() -> Origin | None:
    model = net()
    optimizer, steady = attached(model)
    with steady:
        for step in range(3):
            goal = torch.tensor([0, 2, 1, 1]) if step < 2 else torch.full((4,), -100)
            logits = model(torch.randn(4, 5))
            loss = F.cross_entropy(logits, goal, ignore_index=-100)  # origin
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return steady.origin


# -- losses -----------------------------------------------------------------------------------


@training()
def entropy_by_hand() -> Origin | None:
    model = net(5, 1)
    optimizer, steady = attached(model)
    with steady:
        for step in range(3):
            x, y = torch.randn(6, 5), torch.ones(6, 1)
            p = torch.sigmoid(model(x) + (1e3 if step == 2 else 0.0))
            loss = -(y * torch.log(p) + (1 - y) * torch.log(1 - p)).mean()  # origin
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return steady.origin


@training()
def divergence_of_zero() -> Origin | None:
    model = net()
    optimizer, steady = attached(model)
    with steady:
        for step in range(3):
            p = F.softmax(model(torch.randn(6, 5)) * (1e4 if step == 2 else 1.0), dim=1)
            target = torch.full((6, 3), 1 / 3)
            loss = F.kl_div(p.log(), target, reduction="batchmean")  # origin
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return steady.origin


@training()
def counts_too_large() -> Origin | None:
    model, loss_of = net(5, 1), nn.PoissonNLLLoss(log_input=True)
    optimizer, steady = attached(model)
    with steady:
        for step in range(3):
            rate = model(torch.randn(6, 5)) + (200.0 if step == 2 else 0.0)
            loss = loss_of(rate, torch.ones(6, 1))  # origin
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return steady.origin


@training()
def alignment_that_cannot_be() -> Origin | None:
    model = nn.LSTM(4, 5)
    optimizer, steady = attached(model)
    with steady:
        for step in range(3):
            out, _ = model(torch.randn(6, 2, 4))
            logp = out.log_softmax(-1)
            wanted = torch.tensor([2, 6 if step == 2 else 2])
            labels = torch.ones(2, 6, dtype=torch.long)
            loss = F.ctc_loss(logp, labels, torch.tensor([6, 5]), wanted)  # origin
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return steady.origin


@training()
def learned_uncertainty() -> Origin | None:
    model, log_sigma = net(), nn.Parameter(torch.zeros(2))
    optimizer, steady = attached([*model.parameters(), log_sigma])
    with steady:
        for step in range(3):
            out = model(torch.randn(6, 5))
            parts = torch.stack([out[:, 0].square().mean(), out[:, 1].abs().mean()])
            sigma = torch.exp(log_sigma - (200.0 if step == 2 else 0.0))
            loss = (parts / sigma.square()).sum() + log_sigma.sum()  # origin
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return steady.origin


class _Contrast(nn.Module):
    """InfoNCE with a temperature that is learned."""

    def __init__(self) -> None:
        super().__init__()
        self.log_temperature = nn.Parameter(torch.zeros(()))

    def forward(self, a: torch.Tensor, b: torch.Tensor, shift: float) -> torch.Tensor:
        temperature = torch.exp(self.log_temperature + shift)
        scores = F.cosine_similarity(a[:, None], b[None], dim=-1) / temperature  # origin
        return F.cross_entropy(scores, torch.arange(len(a)))


@training(_Contrast)
def cold_temperature() -> Origin | None:
    model, criterion = net(), _Contrast()
    optimizer, steady = attached([*model.parameters(), *criterion.parameters()])
    with steady:
        for step in range(3):
            x = torch.randn(6, 5)
            loss = criterion(model(x), model(x + 0.1), -200.0 if step == 2 else 0.0)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return steady.origin


@training()
def slope_penalty() -> Origin | None:
    critic = net(5, 1)
    optimizer, steady = attached(critic, torch.optim.Adam)
    with steady:
        for step in range(3):
            x = torch.randn(6, 5, requires_grad=True)
            score = critic(x * (0.0 if step == 2 else 1.0)).sum()
            (slope,) = torch.autograd.grad(score, x, create_graph=True)
            length = slope.pow(2).sum(1).pow(0.5)  # origin
            loss = score.square() * 0.0 + (length - 1.0).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return steady.origin


@training()
def listed_losses() -> Origin | None:
    model = net(5, 4)
    optimizer, steady = attached(model)
    with steady:
        for step in range(3):
            out = model(torch.randn(6, 5))
            heads = [out[:, k] * (0.0 if step == 2 and k == 2 else 1.0) for k in range(4)]
            losses = [(h / h.detach().abs().max()).square().mean() for h in heads]  # origin
            optimizer.zero_grad()
            sum(losses).backward()
            optimizer.step()
        return steady.origin


# -- shapes of training -----------------------------------------------------------------------


@training(rows=(1,))
def third_micro_batch() -> Origin | None:
    model = net()
    optimizer, steady = attached(model)
    with steady:
        for step in range(2):
            optimizer.zero_grad()
            for micro in range(4):
                x = torch.randn(4, 5)
                out = model(x)
                scale = torch.ones(4, 1)
                scale[1] = 0.0 if step == 1 and micro == 2 else 1.0
                loss = (out / scale).square().mean() / 4  # origin
                loss.backward()
            optimizer.step()
        return steady.origin


@training()
def judge_is_sure() -> Origin | None:
    maker, judge = net(3, 5), net(5, 1)
    makes, steady = attached(maker, torch.optim.Adam)
    judges = torch.optim.Adam(judge.parameters(), lr=0.01)
    with steady, sg.attach(judges, clip="norm:1.0", find_nan=True):
        for step in range(3):
            fake = maker(torch.randn(6, 3))
            real = judge(torch.randn(6, 5))
            judges.zero_grad()
            (F.softplus(-real) + F.softplus(judge(fake.detach()))).mean().backward()
            judges.step()
            makes.zero_grad()
            shift = 1e3 if step == 2 else 0.0
            p = torch.sigmoid(judge(fake) + shift)
            torch.log(1 - p).mean().backward()  # origin
            makes.step()
        return steady.origin


@training()
def searched_line() -> Origin | None:
    model, x = net(5, 1), torch.randn(8, 5)
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=3)
    gain = [1.0]
    with sg.attach(optimizer, clip="none", find_nan=True) as steady:

        def closure() -> torch.Tensor:
            optimizer.zero_grad()
            error = model(x) * gain[0]
            loss = (error * error).sum().sqrt()  # origin
            loss.backward()
            return loss

        for gain[0] in (1.0, 0.0):
            optimizer.step(closure)
        return steady.origin


@training()
def one_loss_two_optimizers() -> Origin | None:
    body, head = net(5, 4), nn.Linear(4, 2)
    slow, fast = (torch.optim.SGD(m.parameters(), lr=r) for m, r in ((body, 1e-3), (head, 0.1)))
    one = sg.attach(slow, clip="norm:1.0", find_nan=True)
    two = sg.attach(fast, clip="norm:1.0", find_nan=True)
    with one, two:
        for step in range(3):
            features = body(torch.randn(6, 5))
            z = features * (0.0 if step == 2 else 1.0)
            unit = z / z.norm(dim=1, keepdim=True)  # origin
            loss = head(unit).square().mean()
            slow.zero_grad()
            fast.zero_grad()
            loss.backward()
            slow.step()
            fast.step()
        return one.origin


@training()
def second_backward() -> Origin | None:
    model = net(5, 2)
    optimizer, steady = attached(model)
    with steady:
        for step in range(3):
            out = model(torch.randn(6, 5))
            optimizer.zero_grad()
            out[:, 0].square().mean().backward(retain_graph=True)
            shares = out[:, 1].relu() * (0.0 if step == 2 else 1.0)
            loss = shares.log().mean() if step == 2 else shares.mean()  # origin
            loss.backward()
            optimizer.step()
        return steady.origin


@training()
def called_twice() -> Origin | None:
    model = nn.Sequential(net(5, 5), nn.LayerNorm(5, eps=0.0))
    optimizer, steady = attached(model)
    with steady:
        for step in range(3):
            left = model(torch.randn(6, 5))
            model[0][2].weight.data.mul_(1.0)
            right = left * 0.0 if step == 2 else model(left)
            near = (left * right).sum(1) / (left.norm(dim=1) * right.norm(dim=1))  # origin
            optimizer.zero_grad()
            near.mean().backward()
            optimizer.step()
        return steady.origin


class _Trainer:
    """A loop in methods, as frameworks write it."""

    def __init__(self) -> None:
        self.model = net()
        self.optimizer, self.steady = attached(self.model)

    def loss_of(self, batch: torch.Tensor, step: int) -> dict[str, torch.Tensor]:
        out = self.model(batch)
        confidence = out.softmax(1).amax(1) * (0.0 if step == 2 else 1.0)
        reward = confidence.log()  # origin
        return {"total": -reward.mean(), "confidence": confidence.mean().detach()}

    def step(self, number: int) -> None:
        self.optimizer.zero_grad()
        self.loss_of(torch.randn(6, 5), number)["total"].backward()
        self.optimizer.step()


@training(_Trainer)
def loop_in_methods() -> Origin | None:
    trainer = _Trainer()
    with trainer.steady:
        for number in range(3):
            trainer.step(number)
        return trainer.steady.origin


@training()
def gradients_by_hand() -> Origin | None:
    model = net(5, 1)
    optimizer, steady = attached(model)
    with steady:
        for step in range(3):
            loss = torch.sqrt(model(torch.randn(6, 5)).square() * (step < 2)).mean()  # origin
            grads = torch.autograd.grad(loss, list(model.parameters()))
            for parameter, grad in zip(model.parameters(), grads, strict=True):
                parameter.grad = grad
            optimizer.step()
        return steady.origin


# -- models ---------------------------------------------------------------------------------------


class _Recomputed(nn.Module):
    """Blocks that are computed again in the backward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.blocks = nn.Linear(5, 5), nn.ModuleList([net(5, 5), net(5, 5)])
        self.gate = 1.0

    def block(self, x: torch.Tensor, number: int) -> torch.Tensor:
        z = self.blocks[number](x) * (self.gate if number else 1.0)
        energy = z.square().mean(-1, keepdim=True)
        return x + z * torch.rsqrt(energy)  # origin

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        for number in range(2):
            x = checkpoint(self.block, x, number, use_reentrant=False)
        return x


@training(_Recomputed)
def recomputed_block() -> Origin | None:
    model = _Recomputed()
    optimizer, steady = attached(model)
    with steady:
        for step in range(3):
            model.gate = 0.0 if step == 2 else 1.0
            optimizer.zero_grad()
            model(torch.randn(6, 5)).square().mean().backward()
            optimizer.step()
        return steady.origin


class _Attends(nn.Module):
    """Attention that gives its weights."""

    def __init__(self) -> None:
        super().__init__()
        self.attention, self.head = nn.MultiheadAttention(6, 2, batch_first=True), nn.Linear(6, 2)

    def forward(self, x: torch.Tensor, absent: torch.Tensor) -> torch.Tensor:
        out, weights = self.attention(x, x, x, key_padding_mask=absent)  # origin
        return self.head(out.mean(1)) + weights.sum() * 0.0


@training(_Attends)
def nobody_to_attend_to() -> Origin | None:
    model = _Attends()
    optimizer, steady = attached(model)
    with steady:
        for step in range(3):
            absent = torch.zeros(3, 4, dtype=torch.bool)
            absent[1] = step == 2
            optimizer.zero_grad()
            model(torch.randn(3, 4, 6), absent).square().mean().backward()
            optimizer.step()
        return steady.origin


class _Weighted(nn.Module):
    """A layer of fixed length: direction and size apart."""

    def __init__(self) -> None:
        super().__init__()
        self.lin = torch.nn.utils.parametrizations.weight_norm(nn.Linear(5, 3))
        self.direction = self.lin.parametrizations.weight.original1

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.lin(x).tanh()  # origin


@training(_Weighted)
def direction_lost() -> Origin | None:
    model = _Weighted()
    optimizer, steady = attached(model)
    with steady:
        for step in range(3):
            if step == 2:
                model.direction.data.zero_()
            optimizer.zero_grad()
            model(torch.randn(6, 5)).square().mean().backward()
            optimizer.step()
        return steady.origin


class _Answer(NamedTuple):
    """What a model gives."""

    scores: torch.Tensor
    spread: torch.Tensor


class _Gaussian(nn.Module):
    """Mean and spread, in a named tuple."""

    def __init__(self) -> None:
        super().__init__()
        self.body = net(5, 4)
        self.floor = 1e-3

    def forward(self, *, inputs: torch.Tensor) -> _Answer:
        mean, raw = self.body(inputs).chunk(2, dim=1)
        return _Answer(mean, F.relu(raw) * (self.floor > 0) + self.floor)


@training()
def no_floor_of_spread() -> Origin | None:
    model = _Gaussian()
    optimizer, steady = attached(model)
    with steady:
        for step in range(3):
            model.floor = 0.0 if step == 2 else 1e-3
            answer = model(inputs=torch.randn(6, 5))
            error = torch.randn(6, 2) - answer.scores
            loss = (answer.spread.log() + 0.5).mean()  # origin
            loss = loss + (error / answer.spread.clamp_min(1e-3)).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return steady.origin


class _Teacher(nn.Module):
    """Gives targets; never trained."""

    def __init__(self) -> None:
        super().__init__()
        self.lin, self.heat = nn.Linear(5, 3), 1.0

    @torch.no_grad()
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        powers = torch.exp(self.lin(x) / self.heat)  # origin
        return powers / powers.sum(1, keepdim=True)


@training(_Teacher)
def teacher_overflows() -> Origin | None:
    model, teacher = net(), _Teacher()
    nn.init.constant_(teacher.lin.bias, 1.0)
    nn.init.constant_(teacher.lin.weight, 0.0)
    optimizer, steady = attached(model)
    with steady:
        for step in range(3):
            teacher.heat = 1e-3 if step == 2 else 1.0
            x = torch.randn(6, 5)
            with torch.no_grad():
                goal = teacher(x)
            optimizer.zero_grad()
            F.cross_entropy(model(x), goal).backward()
            optimizer.step()
        return steady.origin


class _Counting(nn.Module):
    """Warms up by a number of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.calls = net(), 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        warm = torch.tensor(3.0 - self.calls)
        return self.body(x) / warm  # origin


@training(_Counting)
def counter_in_the_model() -> Origin | None:
    model = _Counting()
    optimizer, steady = attached(model)
    with steady:
        for _ in range(3):
            optimizer.zero_grad()
            model(torch.randn(6, 5)).square().mean().backward()
            optimizer.step()
        return steady.origin


class _Averaging(nn.Module):
    """Divides by a running mean that it keeps in a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.body = net()
        self.register_buffer("level", torch.ones(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.body(x)
        with torch.no_grad():
            self.level.mul_(0.5).add_(0.5 * h.abs().mean(0))
        return h / self.level  # origin


@training(_Averaging)
def running_level() -> Origin | None:
    model = _Averaging()
    optimizer, steady = attached(model)
    with steady:
        for step in range(4):
            if step == 3:
                model.level.zero_()
                model.body[2].weight.data.zero_()
                model.body[2].bias.data.zero_()
            optimizer.zero_grad()
            model(torch.randn(6, 5)).square().mean().backward()
            optimizer.step()
        return steady.origin


class _Caching(nn.Module):
    """Keeps what it has seen in a list of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.body = net(5, 5)
        self.seen: list[torch.Tensor] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen.append(x.detach().mean(0))
        spread = torch.stack(self.seen[-3:]).std(0)
        width = spread if len(self.seen) == 4 else torch.ones(5)
        return self.body(x) / width  # origin


@training(_Caching)
def cache_in_the_model() -> Origin | None:
    model = _Caching()
    optimizer, steady = attached(model)
    with steady:
        for _ in range(4):
            optimizer.zero_grad()
            model(torch.ones(6, 5)).square().mean().backward()
            optimizer.step()
        return steady.origin


# -- chance -----------------------------------------------------------------------------------


class _Chances(nn.Module):
    """Divides by a random number that is zero now and then."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.body, self.source = net(), source
        self.torchs = torch.Generator().manual_seed(4)
        self.numpys = np.random.default_rng(4)

    def draw(self) -> float:
        if self.source == "torch":
            return float(torch.randint(0, 6, ()))
        if self.source == "own torch":
            return float(torch.randint(0, 6, (), generator=self.torchs))
        if self.source == "numpy":
            return float(np.random.randint(0, 6))
        if self.source == "own numpy":
            return float(self.numpys.integers(0, 6))
        return float(random.randint(0, 5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        chance = torch.tensor(self.draw())
        return self.body(x) / chance  # origin


def _by_chance(source: str) -> Origin | None:
    random.seed(5)
    np.random.seed(5)
    model = _Chances(source)
    optimizer, steady = attached(model)
    with steady:
        for _ in range(60):
            optimizer.zero_grad()
            model(torch.randn(6, 5)).square().mean().backward()
            optimizer.step()
            if steady.origin is not None:
                break
        return steady.origin


@training(_Chances)
def chance_of_torch() -> Origin | None:
    return _by_chance("torch")


@training(_Chances)
def chance_of_an_own_generator() -> Origin | None:
    return _by_chance("own torch")


@training(_Chances)
def chance_of_numpy() -> Origin | None:
    return _by_chance("numpy")


@training(_Chances)
def chance_of_an_own_numpy_generator() -> Origin | None:
    return _by_chance("own numpy")


@training(_Chances)
def chance_of_python() -> Origin | None:
    return _by_chance("python")


@training()
def dropped_to_nothing() -> Origin | None:
    model, drop = net(5, 4), nn.Dropout(0.9)
    optimizer, steady = attached(model)
    with steady:
        for _ in range(60):
            kept = drop(model(torch.randn(6, 5)))
            unit = kept / kept.abs().sum(1, keepdim=True)  # origin
            optimizer.zero_grad()
            unit.square().mean().backward()
            optimizer.step()
            if steady.origin is not None:
                break
        return steady.origin


# -- states that are carried ----------------------------------------------------------------------


@training()
def state_that_grows() -> Origin | None:
    cell, head = nn.LSTMCell(3, 4), nn.Linear(4, 2)
    optimizer, steady = attached([*cell.parameters(), *head.parameters()])
    state = (torch.zeros(5, 4), torch.zeros(5, 4))
    with steady:
        for _ in range(4):
            total = torch.zeros(())
            for _ in range(3):
                h, c = cell(torch.randn(5, 3), state)
                c = c * 1e13  # origin
                state = (h, c)
                total = total + head(h).square().mean() + (c * 0.0).sum()
            optimizer.zero_grad()
            total.backward()
            optimizer.step()
            state = tuple(s.detach() for s in state)
            if steady.origin is not None:
                break
        return steady.origin


@training()
def graph_that_is_carried() -> Origin | None:
    model = nn.GRU(3, 4, batch_first=True)
    optimizer, steady = attached(model)
    state = None
    with steady:
        for step in range(3):
            out, state = model(torch.randn(5, 2, 3), state)
            state = state.detach()
            gain = out.norm(dim=-1) * (0.0 if step == 2 else 1.0)
            loss = (out.sum(-1) / gain).square().mean()  # origin
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return steady.origin


@training(phase="weights")
def step_too_far() -> Origin | None:
    model = nn.Linear(5, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    with sg.attach(optimizer, clip="none", find_nan=True) as steady:
        for step in range(3):
            optimizer.param_groups[0]["lr"] = 1e38 if step == 1 else 0.1
            loss = (model(torch.ones(6, 5)) * (1e4 if step == 1 else 1.0)).square().mean()  # origin
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return steady.origin


# -- precision ------------------------------------------------------------------------------------


@training()
def scaled_in_half() -> Origin | None:
    model = net()
    optimizer, steady = attached(model)
    scaler = torch.amp.GradScaler("cpu", init_scale=64.0)
    with steady:
        for step in range(3):
            with torch.autocast("cpu", dtype=torch.float16):
                out = model(torch.randn(6, 5))
                logits = out * (6e4 if step == 2 else 1.0) * 10.0 ** (2 * (step == 2))  # origin
                loss = F.cross_entropy(logits, torch.zeros(6, dtype=torch.long))
            optimizer.zero_grad()
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
        return steady.origin


@training()
def norm_in_bfloat() -> Origin | None:
    model = net()
    optimizer, steady = attached(model)
    with steady:
        for step in range(3):
            with torch.autocast("cpu", dtype=torch.bfloat16):
                out = model(torch.randn(6, 5))
                z = out - out if step == 2 else out
                unit = z * z.float().square().sum(1, keepdim=True).rsqrt()  # origin
            optimizer.zero_grad()
            unit.float().mean().backward()
            optimizer.step()
        return steady.origin


# -- transforms --------------------------------------------------------------------------------


@training()
def called_with_other_weights() -> Origin | None:
    model = net(5, 1)
    optimizer, steady = attached(model)
    with steady:
        for step in range(3):
            gain = 0.0 if step == 2 else 1.0
            weights = {name: p * gain for name, p in model.named_parameters()}
            out = torch.func.functional_call(model, weights, (torch.randn(6, 5),))
            loss = out.abs().sqrt().mean()  # origin
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return steady.origin


@training()
def gradient_of_a_function() -> Origin | None:
    weight = nn.Parameter(torch.ones(5))
    optimizer, steady = attached([weight])

    def energy(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        return (x * w).square().sum()

    with steady:
        for step in range(3):
            x = torch.ones(5) * (0.0 if step == 2 else 1.0)
            force = torch.func.grad(energy)(x, weight)
            loss = force.square().sum().sqrt()  # origin
            optimizer.zero_grad()
            (loss + weight.sum()).backward()
            optimizer.step()
        return steady.origin


@training()
def several_models_at_once() -> Origin | None:
    models = [net(5, 1) for _ in range(3)]
    optimizer, steady = attached([p for m in models for p in m.parameters()])
    with steady:
        for step in range(3):
            x = torch.randn(6, 5)
            outs = torch.stack([m(x) for m in models])
            spread = (outs - outs.mean(0)) * (0.0 if step == 2 else 1.0)
            loss = -(spread.std(0) + 0.0).log().mean() + outs.mean()  # origin
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return steady.origin


@training()
def wrapped_positions() -> Origin | None:
    model = net(2, 2)
    optimizer, steady = attached(model)
    with steady:
        for step in range(3):
            points = model(torch.randn(6, 2)) * (0.0 if step == 2 else 1.0)
            gaps = points[:, None] - points[None]
            distances = gaps.square().sum(-1).sqrt()  # origin
            off = ~torch.eye(6, dtype=torch.bool)
            loss = torch.exp(-distances[off]).mean() + points.sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if steady.origin is not None:
                break
        return steady.origin


# -- the second part: written after what the first part showed was mended --------------------------

FIRST_TRAININGS = frozenset(TRAININGS)


@training(rows=(3, 7))
def rows_without_a_label() -> Origin | None:
    model = net(5, 4)
    optimizer, steady = attached(model)
    with steady:
        for step in range(3):
            present = torch.ones(9, 4)
            if step == 2:
                present[[3, 7]] = 0.0
            errors = (model(torch.randn(9, 5)) - 1.0).abs()
            each = (errors * present).sum(dim=1) / present.sum(dim=1)  # origin
            optimizer.zero_grad()
            each.mean().backward()
            optimizer.step()
        return steady.origin


@training(rows=(2,), phase="input")
def poisoned_picture() -> Origin | None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.GELU(), nn.Flatten(), nn.Linear(18, 3))
    pictures = torch.rand(15, 1, 5, 5)
    pictures[12, 0, 4, 4] = float("nan")
    optimizer, steady = attached(model)
    with steady:
        for (x,) in DataLoader(TensorDataset(pictures), batch_size=5, shuffle=False):
            optimizer.zero_grad()
            model(x).logsumexp(1).mean().backward()  # origin
            optimizer.step()
        return steady.origin


@training()
def augmented_in_place() -> Origin | None:
    model = net()
    optimizer, steady = attached(model)
    with steady:
        for step in range(3):
            x = torch.rand(6, 5)
            if step == 2:
                x[:, 2] = 0.0
            x.div_(x.amax(0))  # origin
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()
        return steady.origin


@training()
def penalty_after_backward() -> Origin | None:
    model = net()
    optimizer, steady = attached(model)
    with steady:
        for step in range(3):
            optimizer.zero_grad()
            model(torch.randn(6, 5)).square().mean().backward()
            gate = 0.0 if step == 2 else 1.0
            weights = [p * gate for p in model.parameters()]
            penalty = torch.stack([w.pow(2).sum().sqrt() for w in weights])  # origin
            (1e-3 * penalty.sum()).backward()
            optimizer.step()
        return steady.origin


@training()
def critic_with_penalty() -> Origin | None:
    critic, maker = net(4, 1), net(2, 4)
    optimizer, steady = attached(critic, torch.optim.RMSprop)
    with steady:
        for step in range(3):
            real, fake = torch.randn(6, 4), maker(torch.randn(6, 2)).detach()
            mixed = torch.lerp(real, fake, torch.rand(6, 1)).requires_grad_()
            score = critic(mixed) * (0.0 if step == 2 else 1.0)
            slope = torch.autograd.grad(score.sum(), mixed, create_graph=True)[0]
            steep = (slope.norm(2, dim=1) - 1.0).square()
            away = torch.log(slope.square().sum(1)).mean()  # origin
            optimizer.zero_grad()
            (critic(fake).mean() - critic(real).mean() + steep.mean() + 1e-3 * away).backward()
            optimizer.step()
        return steady.origin


class _Actor(nn.Module):
    """A squashed Gaussian policy."""

    def __init__(self) -> None:
        super().__init__()
        self.body = net(4, 4)

    def forward(self, x: torch.Tensor, push: float) -> tuple[torch.Tensor, torch.Tensor]:
        mean, log_std = self.body(x).chunk(2, -1)
        normal = torch.distributions.Normal(
            mean + push, log_std.clamp(-5, 2).exp(), validate_args=False
        )
        raw = normal.rsample()
        action = torch.tanh(raw)
        chance = normal.log_prob(raw).sum(-1)
        chance = chance - torch.log1p(-action.pow(2)).sum(-1)  # origin
        return action, chance


@training(_Actor)
def squashed_policy() -> Origin | None:
    model = _Actor()
    optimizer, steady = attached(model, torch.optim.Adam)
    with steady:
        for step in range(3):
            action, chance = model(torch.randn(6, 4), 1e3 if step == 2 else 0.0)
            optimizer.zero_grad()
            (0.2 * chance - action.sum(-1)).mean().backward()
            optimizer.step()
        return steady.origin


@training()
def ratio_of_policies() -> Origin | None:
    model = net(5, 3)
    optimizer, steady = attached(model)
    with steady:
        for step in range(3):
            logits = model(torch.randn(6, 5))
            new = torch.distributions.Categorical(logits=logits, validate_args=False)
            actions = torch.zeros(6, dtype=torch.long)
            old = new.log_prob(actions).detach() - (300.0 if step == 2 else 0.2)
            ratio = (new.log_prob(actions) - old).exp()  # origin
            surrogate = torch.minimum(ratio * 2.0, ratio.clamp(0.8, 1.2) * 2.0)
            optimizer.zero_grad()
            (-surrogate + 1e-3 * (ratio - 1).square()).mean().backward()
            optimizer.step()
        return steady.origin


class _Diffuses(nn.Module):
    """A schedule of noise, and a step back along it."""

    def __init__(self) -> None:
        super().__init__()
        self.body = net(6, 5)
        self.register_buffer("kept", torch.cumprod(torch.linspace(1.0, 0.0, 8), 0))

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        level = self.kept[t][:, None]
        noisy = level.sqrt() * x + (1 - level).sqrt() * torch.randn_like(x)
        guess = self.body(torch.cat([noisy, level], 1))
        return (noisy - (1 - level).sqrt() * guess) / level.sqrt()  # origin


@training(_Diffuses, rows=(4,))
def last_moment_of_diffusion() -> Origin | None:
    model = _Diffuses()
    optimizer, steady = attached(model)
    with steady:
        for step in range(3):
            t = torch.tensor([1, 2, 1, 3, 7 if step == 2 else 2, 0])
            x = torch.randn(6, 5)
            optimizer.zero_grad()
            F.mse_loss(model(x, t), x).backward()
            optimizer.step()
        return steady.origin


class _Flow(nn.Module):
    """An invertible layer, with the logarithm of its determinant."""

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.shift = nn.Linear(2, 2), nn.Linear(2, 2)

    def forward(self, x: torch.Tensor, steep: float) -> tuple[torch.Tensor, torch.Tensor]:
        a, b = x.chunk(2, dim=1)
        s = self.scale(a) * steep + steep
        grown = b * torch.exp(s)  # origin
        return torch.cat([a, grown + self.shift(a)], 1), s.sum(1)


@training(_Flow)
def steep_flow() -> Origin | None:
    flows = nn.ModuleList([_Flow(), _Flow()])
    optimizer, steady = attached(flows)
    with steady:
        for step in range(3):
            z, total = torch.randn(6, 4) + 3.0, torch.zeros(6)
            for flow in flows:
                z, log_det = flow(z, 300.0 if step == 2 else 0.1)
                total = total + log_det
            optimizer.zero_grad()
            (0.5 * z.square().sum(1) - total).mean().backward()
            optimizer.step()
        return steady.origin


class _Quantised(nn.Module):
    """Nearest codes, whose use is averaged in buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.body = net(5, 4)
        self.register_buffer("codes", torch.randn(6, 4))
        self.register_buffer("uses", torch.ones(6))
        self.decay = 0.5

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        z = self.body(x)
        chosen = F.one_hot(torch.cdist(z.detach(), self.codes).argmin(1), 6).float()
        with torch.no_grad():
            self.uses.mul_(self.decay).add_(chosen.sum(0), alpha=1 - self.decay)
        centres = chosen.t() @ z.detach() / self.uses[:, None]  # origin
        return z + (chosen @ centres - z).detach() + centres.mean() * z.mean()


@training(_Quantised)
def code_never_used() -> Origin | None:
    model = _Quantised()
    optimizer, steady = attached(model)
    with steady:
        for step in range(4):
            model.decay = 0.0 if step == 3 else 0.5
            optimizer.zero_grad()
            model(torch.randn(4, 5)).square().mean().backward()
            optimizer.step()
        return steady.origin


class _Cached(nn.Module):
    """Keeps keys of earlier calls in a dictionary; made when first needed."""

    def __init__(self) -> None:
        super().__init__()
        self.body = net(5, 5)
        self.state: dict[str, torch.Tensor] = {}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.body(x)
        past = self.state.get("past", torch.full_like(h, 8.0))
        self.state["past"] = (past.detach() - 2.0) * (h.detach() * 0.0 + 1.0)
        return h / past  # origin


@training(_Cached)
def dictionary_in_the_model() -> Origin | None:
    model = _Cached()
    optimizer, steady = attached(model)
    with steady:
        for _ in range(6):
            optimizer.zero_grad()
            model(torch.randn(6, 5)).tanh().mean().backward()
            optimizer.step()
            if steady.origin is not None:
                break
        return steady.origin


@training()
def schedule_of_a_loss_weight() -> Origin | None:
    model, weight = net(), {"value": 1.0}
    optimizer, steady = attached(model)
    with steady:
        for step in range(3):
            weight["value"] = 0.0 if step == 2 else 1.0
            out = model(torch.randn(6, 5))
            parts = {"a": out[:, 0].square().mean(), "b": out[:, 1].abs().mean() * weight["value"]}
            balanced = {name: part / part.detach() for name, part in parts.items()}  # origin
            optimizer.zero_grad()
            torch.stack(list(balanced.values())).sum().backward()
            optimizer.step()
        return steady.origin


@training()
def decorated_loss() -> Origin | None:
    def averaged(function: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        return lambda *args: function(*args).mean()

    @averaged
    def margin(out: torch.Tensor, cold: bool) -> torch.Tensor:
        top = out.softmax(1).amax(1)
        return -torch.log(top - (top if cold else 0.0))  # origin

    model = net()
    optimizer, steady = attached(model)
    with steady:
        for step in range(3):
            loss = margin(model(torch.randn(6, 5)), step == 2)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return steady.origin


@training()
def helpers_of_a_generator() -> Origin | None:
    def batches() -> Any:
        for step in range(3):
            raw = torch.randn(6, 5)
            raw = raw * 0.0 if step == 2 else raw
            yield raw / raw.std(dim=1, keepdim=True)  # origin

    model = net()
    optimizer, steady = attached(model)
    with steady:
        for x in batches():
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()
        return steady.origin


@training()
def trained_twice_a_step() -> Origin | None:
    model, x = net(5, 1), torch.randn(6, 5)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    steady = sg.attach(optimizer, clip="norm:1.0", find_nan=True)
    with steady:
        for step in range(3):
            optimizer.zero_grad()
            first = model(x).square().mean()
            first.backward()
            for p in model.parameters():
                p.grad.mul_(0.5)
            gain = 0.0 if step == 2 else 1.0
            second = (model(x + 0.1) * gain).square().sum().pow(0.5)  # origin
            second.backward()
            optimizer.step()
        return steady.origin


@training()
def shared_by_three_losses() -> Origin | None:
    model = net(5, 6)
    optimizer, steady = attached(model)
    with steady:
        for step in range(3):
            one, two, three = model(torch.randn(6, 5)).split(2, dim=1)
            two = two.abs() * (0.0 if step == 2 else 1.0)
            a = F.mse_loss(one, torch.zeros(6, 2))
            b = (two * two.log()).sum(1).mean()  # origin
            c = three.logsumexp(1).mean()
            optimizer.zero_grad()
            torch.autograd.backward([a, b, c])
            optimizer.step()
        return steady.origin


@training()
def jacobian_of_a_row() -> Origin | None:
    model = net(5, 2)
    optimizer, steady = attached(model)
    with steady:
        for step in range(3):
            x = torch.randn(4, 5)
            weights = dict(model.named_parameters())

            def of(row: torch.Tensor, weights: dict[str, torch.Tensor] = weights) -> torch.Tensor:
                return torch.func.functional_call(model, weights, (row,)).sum()

            slopes = torch.func.vmap(torch.func.grad(of))(x) * (0.0 if step == 2 else 1.0)
            length = slopes.square().sum(1).sqrt()  # origin
            optimizer.zero_grad()
            (model(x).square().mean() + length.mean()).backward()
            optimizer.step()
        return steady.origin


@training()
def ensemble_of_weights() -> Origin | None:
    base = net(5, 1)
    stacked = {k: nn.Parameter(torch.stack([v.detach()] * 3)) for k, v in base.named_parameters()}
    optimizer, steady = attached(list(stacked.values()))
    with steady:
        for step in range(3):
            x = torch.randn(6, 5)

            def one(weights: dict[str, torch.Tensor], x: torch.Tensor = x) -> torch.Tensor:
                return torch.func.functional_call(base, weights, (x,))

            outs = torch.vmap(one)(stacked)
            spread = outs.var(0) * (0.0 if step == 2 else 1.0)
            loss = outs.square().mean() - (spread / spread).mean()  # origin
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return steady.origin


class _Normalised(nn.Module):
    """A batch norm that is frozen, with a variance that is not there."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Linear(5, 4), nn.BatchNorm1d(4)
        self.last = nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.first(x)
        h = self.norm(h)  # origin
        return self.last(h)


@training(_Normalised)
def frozen_variance() -> Origin | None:
    model = _Normalised()
    optimizer, steady = attached(model)
    with steady:
        for step in range(3):
            if step == 2:
                model.norm.eval()
                model.norm.running_var[1] = model.norm.eps = 0.0
            optimizer.zero_grad()
            model(torch.randn(6, 5)).square().mean().backward()
            optimizer.step()
        return steady.origin


@training()
def evaluated_between() -> Origin | None:
    model = net()
    optimizer, steady = attached(model)
    with steady:
        for step in range(3):
            out = model(torch.randn(6, 5))
            loss = (out * (0.0 if step == 2 else 1.0)).norm(dim=1).log().mean()  # origin
            optimizer.zero_grad()
            loss.backward()
            model.eval()
            with torch.no_grad():
                seen = [model(torch.randn(50, 5)).argmax(1) for _ in range(3)]
            assert len(seen) == 3
            model.train()
            optimizer.step()
        return steady.origin


@training()
def norm_of_all_gradients_first() -> Origin | None:
    model = net()
    optimizer, steady = attached(model)
    with steady:
        for step in range(3):
            out = model(torch.randn(6, 5))
            base = out.abs() * (0.0 if step == 2 else 1.0)
            loss = base.pow(0.25).mean()  # origin
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
        return steady.origin


@training(phase="input")
def infinite_feature_squashed() -> Origin | None:
    model = nn.Sequential(nn.Linear(4, 6), nn.Sigmoid(), nn.Linear(6, 2))
    optimizer, steady = attached(model)
    with steady:
        for step in range(3):
            raw = np.random.default_rng(step).normal(size=(5, 4)).astype(np.float32)
            if step == 2:
                raw[3, 1] = np.inf
            out = model(torch.from_numpy(raw))  # origin
            optimizer.zero_grad()
            out.square().mean().backward()
            optimizer.step()
        return steady.origin
