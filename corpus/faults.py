"""What goes wrong, and its healthy counterpart.

Each fault is a change of a healthy `Setup`, with the rule ids that are right answers
(several may be: a learning rate that is too high explodes the gradients) and the
healthy variant that differs from it by the fault alone, or nearly so.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import torch
from architectures import Batch, Knobs, Player, Task
from composed import COMPOSED
from habits import HABITS
from objectives import (
    CLASSIFIERS,
    MISTAKEN,
    PAIRS,
    Loss,
    gates_at,
    grows,
    in_units,
    one_against_the_others,
    pixels_of_1,
    squared,
    told,
)
from torch import Tensor, nn
from training import Script, Setup

Make = Callable[[str, int], Setup]
EVERY = (
    "mlp", "cnn", "rnn", "lstm", "gru", "transformer", "gan", "rl", "embeddings", "autoencoder",
    "resnet", "vae", "graph", "policy", "tagger", *COMPOSED,
)  # fmt: skip
FEED_FORWARD = ("mlp", "cnn", "rl", "autoencoder")
PLAIN_STACKS = (*FEED_FORWARD, "vae", "policy", "siamese", "denoiser")
PARTLY = ("reader",)
"""Kinds of training that few faults are tried on."""
SINGLE = tuple(a for a in EVERY if a not in ("gan",))
DEEP = 10
LOOPS = ("mlp", "cnn", "rnn", "transformer", "autoencoder", "resnet", "unet", "seq2seq")


@dataclass(frozen=True)
class Fault:
    """One way to break a training.

    Attributes:
        accepted: ids that are right answers.
        architectures: where it can happen.
        make: the broken setup, from architecture and seed.
        twin: the healthy variant that stands beside it.
        also: further right answers, where an architecture turns the fault into another one.
    """

    accepted: tuple[str, ...]
    architectures: tuple[str, ...]
    make: Make
    twin: str = "plain"
    also: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def answers(self, architecture: str) -> tuple[str, ...]:
        """Ids that are right for one architecture."""
        return (*self.accepted, *self.also.get(architecture, ()))


def weights(module: nn.Module) -> list[nn.Parameter]:
    """Matrices and kernels, embeddings left out."""
    tables = {id(m.weight) for m in module.modules() if isinstance(m, nn.Embedding)}
    return [p for p in module.parameters() if p.dim() > 1 and id(p) not in tables]


def biases(module: nn.Module) -> list[nn.Parameter]:
    kinds = (nn.Linear, nn.Conv2d)
    return [m.bias for m in module.modules() if isinstance(m, kinds) and m.bias is not None]


# ---- initialisations -------------------------------------------------------------------


@torch.no_grad()
def scale_weights(factor: float) -> Callable[[Task], None]:
    def build(task: Task) -> None:
        with torch.no_grad():
            for weight in weights(task.model):
                weight.mul_(factor)

    return build


def fill_weights(value: float) -> Callable[[Task], None]:
    def build(task: Task) -> None:
        with torch.no_grad():
            for parameter in task.model.parameters():
                parameter.fill_(value)

    return build


def xavier(task: Task) -> None:
    for weight in weights(task.model):
        nn.init.xavier_uniform_(weight)


def kill_units(task: Task) -> None:
    """Biases so low that no input wakes a unit; the last layer keeps its own."""
    with torch.no_grad():
        for bias in biases(task.model)[:-1]:
            bias.fill_(-30.0)


def saturate_biases(task: Task) -> None:
    """Weights as they should be, and biases that push every unit to an end."""
    with torch.no_grad():
        for bias in biases(task.model)[:-1]:
            bias.copy_(8.0 * torch.sign(torch.linspace(-1, 1.01, len(bias))))


def one_steep_tensor(task: Task) -> None:
    """The second matrix is 300 times smaller and its product 300 times larger: its gradient too."""
    layer = [m for m in task.model.modules() if isinstance(m, nn.Linear)][1]
    with torch.no_grad():
        layer.weight.div_(300.0)
        layer.bias.div_(300.0)
    layer.register_forward_hook(lambda module, args, output: output * 300.0)


def break_weights(task: Task) -> None:
    with torch.no_grad():
        weights(task.model)[0].view(-1)[3] = float("nan")


def detach_first(task: Task) -> None:
    """Everything after the first layer is cut off from it."""
    first = next(
        m for m in task.model.modules() if isinstance(m, nn.Linear | nn.Conv2d | nn.RNNBase)
    )

    def cut(module: nn.Module, args: object, output: object) -> object:
        if isinstance(output, tuple):
            return (output[0].detach(), output[1])
        return output.detach()  # type: ignore[attr-defined]

    first.register_forward_hook(cut)


def detach_embedding(task: Task) -> None:
    first = next(m for m in task.model.modules() if isinstance(m, nn.Embedding))
    first.register_forward_hook(lambda module, args, output: output.detach())


def add_unused(task: Task) -> None:
    first = next(m for m in task.players[0].module.modules() if not list(m.children()))
    first.add_module("spare", nn.Linear(7, 5))


def freeze_first(task: Task) -> None:
    next(iter(task.model.parameters())).requires_grad_(False)


def unfreeze_nothing(task: Task) -> None:
    """A healthy model as it comes."""


# ---- batches and losses ----------------------------------------------------------------


def floats(batch: Batch, change: Callable[[Tensor], Tensor]) -> Batch:
    """The batch with its first part changed."""
    return (change(batch[0]), *batch[1:])


def nan_batch(at: int) -> Callable[[int, Batch], Batch]:
    def spoil(x: Tensor) -> Tensor:
        x = x.clone()
        x.view(-1)[0] = float("nan")
        return x

    return lambda step, batch: floats(batch, spoil) if step == at else batch


def outliers(factor: float) -> Callable[[int, Batch], Batch]:
    return lambda step, b: floats(b, lambda x: x * factor) if step in (41, 67, 83) else b


def unnormalised(step: int, batch: Batch) -> Batch:
    """One feature in other units than the rest."""

    def stretch(x: Tensor) -> Tensor:
        x = x.clone()
        x[:, 3] = 2000.0 * (x[:, 3] + 1.5)
        return x

    return floats(batch, stretch)


def only_the_start(step: int, batch: Batch) -> Batch:
    """What tells the digits apart stands in the first quarter of a sequence."""
    return floats(batch, lambda x: torch.cat([x[:, :16], torch.zeros_like(x[:, 16:])], dim=1))


def edge_of_sqrt(at: int) -> Callable[[int, Tensor], Tensor]:
    """From a step on the loss gains sqrt(0), whose derivative is inf."""

    def loss(step: int, value: Tensor) -> Tensor:
        gap = (value - value.detach()) if step >= at else value.abs() + 1.0
        return value + 1e-3 * torch.sqrt(gap * gap if step >= at else gap)

    return loss


def infinite_log(step: int, loss: Tensor) -> Tensor:
    """A logged penalty, without a gradient, takes the logarithm of 0 now and then."""
    return loss + (torch.tensor(float("inf")) if step % 9 == 5 else torch.tensor(0.0))


def runaway(step: int, loss: Tensor) -> Tensor:
    """A weight of the loss that grows with every step, until float32 ends."""
    return loss * 3.0**step


def masked(step: int, loss: Tensor) -> Tensor:
    """A mask that is 0 everywhere."""
    return loss * 0.0 + loss.detach()


def unbounded(step: int, loss: Tensor) -> Tensor:
    return -(loss**2) - loss


# ---- scripts that clip by themselves ----------------------------------------------------

LIMIT = 1.0


def right(s: Script, player: Player, optimizer: torch.optim.Optimizer, step: int) -> None:
    optimizer.zero_grad()
    s.backward(player.loss(s.batch(step)))
    s.clip(player.module.parameters(), limit(s))
    s.step(optimizer)


def limit(script: Script) -> float:
    return float(script.setup.clip.partition(":")[2] or LIMIT)


def before_backward(s: Script, player: Player, optimizer: torch.optim.Optimizer, step: int) -> None:
    optimizer.zero_grad()
    loss = player.loss(s.batch(step))
    s.clip(player.module.parameters(), limit(s))
    s.backward(loss)
    s.step(optimizer)


def after_step(s: Script, player: Player, optimizer: torch.optim.Optimizer, step: int) -> None:
    optimizer.zero_grad()
    s.backward(player.loss(s.batch(step)))
    s.step(optimizer)
    s.clip(player.module.parameters(), limit(s))


def scaled(unscale: bool) -> Callable[[Script, Player, torch.optim.Optimizer, int], None]:
    def step_(s: Script, player: Player, optimizer: torch.optim.Optimizer, step: int) -> None:
        s.scaler = s.scaler or torch.amp.GradScaler("cpu", init_scale=2.0**12)
        optimizer.zero_grad()
        s.backward(player.loss(s.batch(step)))
        if unscale:
            s.unscale(optimizer)
        s.clip(player.module.parameters(), limit(s))
        s.step(optimizer)

    return step_


def accumulated(each: bool) -> Callable[[Script, Player, torch.optim.Optimizer, int], None]:
    def step_(s: Script, player: Player, optimizer: torch.optim.Optimizer, step: int) -> None:
        optimizer.zero_grad()
        for _ in range(3):
            s.backward(player.loss(s.batch(step)) / 3)
            if each:
                s.clip(player.module.parameters(), limit(s))
        if not each:
            s.clip(player.module.parameters(), limit(s))
        s.step(optimizer)

    return step_


def part(s: Script, player: Player, optimizer: torch.optim.Optimizer, step: int) -> None:
    optimizer.zero_grad()
    s.backward(player.loss(s.batch(step)))
    s.clip(list(player.module.parameters())[:2], limit(s))
    s.step(optimizer)


def halves(s: Script, player: Player, optimizer: torch.optim.Optimizer, step: int) -> None:
    """Two calls that share the parameters between them: healthy."""
    held = list(player.module.parameters())
    optimizer.zero_grad()
    s.backward(player.loss(s.batch(step)))
    s.clip(held[:2], limit(s))
    s.clip(held[2:], limit(s))
    s.step(optimizer)


def twice(s: Script, player: Player, optimizer: torch.optim.Optimizer, step: int) -> None:
    optimizer.zero_grad()
    s.backward(player.loss(s.batch(step)))
    s.clip(player.module.parameters(), limit(s))
    s.clip(player.module.parameters(), limit(s) / 2)
    s.step(optimizer)


def gradients(s: Script, player: Player, optimizer: torch.optim.Optimizer, step: int) -> None:
    optimizer.zero_grad()
    s.backward(player.loss(s.batch(step)))
    s.clip([p.grad for p in player.module.parameters() if p.grad is not None], limit(s))
    s.step(optimizer)


def infinite(s: Script, player: Player, optimizer: torch.optim.Optimizer, step: int) -> None:
    optimizer.zero_grad()
    s.backward(player.loss(s.batch(step)))
    s.clip(player.module.parameters(), float("inf"))
    s.step(optimizer)


def never_cleared(s: Script, player: Player, optimizer: torch.optim.Optimizer, step: int) -> None:
    s.backward(player.loss(s.batch(step)))
    s.step(optimizer)


def cleared_early(s: Script, player: Player, optimizer: torch.optim.Optimizer, step: int) -> None:
    s.backward(player.loss(s.batch(step)))
    optimizer.zero_grad()
    s.step(optimizer)


def in_order(s: Script, player: Player, optimizer: torch.optim.Optimizer, step: int) -> None:
    optimizer.zero_grad()
    s.backward(player.loss(s.batch(step)))
    s.step(optimizer)


def replaced(s: Script, player: Player, optimizer: torch.optim.Optimizer, step: int) -> None:
    """The last layer is made anew once the optimizer is there."""
    if step == 0:
        last = [m for m in player.module.modules() if isinstance(m, nn.Linear)][-1]
        last.weight = nn.Parameter(last.weight.detach().clone())
    player.module.zero_grad()
    s.backward(player.loss(s.batch(step)))
    s.step(optimizer)


def hide_layer(task: Task) -> None:
    """A layer more, in a plain list: no `parameters()` and so no optimizer knows of it."""
    width = 10 if any(isinstance(m, nn.Linear) and m.out_features == 10
                      for m in task.model.modules()) else 64  # fmt: skip
    hidden = [nn.Linear(width, width)]
    nn.init.eye_(hidden[0].weight)
    task.model.spare_layers = hidden  # type: ignore[assignment]
    task.model.register_forward_hook(lambda module, args, output: hidden[0](output))


def hide_frozen(task: Task) -> None:
    """A fixed network in a plain list, as a perceptual loss has it: nothing of it is to move."""
    hide_layer(task)
    for layer in task.model.spare_layers:  # type: ignore[union-attr]
        layer.requires_grad_(False)


def undivided(s: Script, player: Player, optimizer: torch.optim.Optimizer, step: int) -> None:
    """Five micro-batches whose gradients are summed."""
    optimizer.zero_grad()
    for _ in range(5):
        s.backward(player.loss(s.batch(step)))
    s.step(optimizer)


def divided(s: Script, player: Player, optimizer: torch.optim.Optimizer, step: int) -> None:
    """Five micro-batches, and their mean."""
    optimizer.zero_grad()
    for _ in range(5):
        s.backward(player.loss(s.batch(step)) / 5)
    s.step(optimizer)


def softened(task: Task) -> None:
    """The model ends in a softmax; its loss wants logits."""
    task.model.register_forward_hook(lambda module, args, output: output.softmax(-1))


def divided_late(s: Script, player: Player, optimizer: torch.optim.Optimizer, step: int) -> None:
    """A loss scale made by hand, divided out after the clip."""
    optimizer.zero_grad()
    s.backward(player.loss(s.batch(step)) * 64.0)
    s.clip(player.module.parameters(), 64 * limit(s))
    for parameter in player.module.parameters():
        if parameter.grad is not None:
            parameter.grad /= 64.0
    s.step(optimizer)


def averaged_late(s: Script, player: Player, optimizer: torch.optim.Optimizer, step: int) -> None:
    """Micro-batches are summed, and averaged after the clip."""
    optimizer.zero_grad()
    for _ in range(4):
        s.backward(player.loss(s.batch(step)))
    s.clip(player.module.parameters(), 4 * limit(s))
    for parameter in player.module.parameters():
        if parameter.grad is not None:
            parameter.grad /= 4.0
    s.step(optimizer)


# ---- the table ---------------------------------------------------------------------------

ORDINARY = {
    "mlp": 3.0, "cnn": 3.0, "rnn": 3.0, "lstm": 1.5, "gru": 3.0, "transformer": 3.0,
    "gan": 2.0, "rl": 3.0, "embeddings": 0.6, "autoencoder": 1.5,
    "resnet": 3.0, "vae": 0.4, "graph": 0.4, "policy": 0.5, "tagger": 0.5,
    "seq2seq": 1.0, "unet": 1.0, "siamese": 1.0, "experts": 2.0, "flow": 6.0, "denoiser": 1.5,
    "dilated": 2.0, "sets": 2.0,
}  # fmt: skip
"""A threshold over the ordinary norms of each architecture."""


def plain(architecture: str, seed: int) -> Setup:
    return Setup()


def setup(**changes: object) -> Make:
    """A maker that ignores architecture and seed."""
    return lambda architecture, seed: replace(Setup(), **changes)  # type: ignore[arg-type]


def knobs(**changes: object) -> Knobs:
    return replace(Knobs(), **changes)  # type: ignore[arg-type]


def clipped(factor: float) -> Make:
    return lambda a, seed: Setup(clip=f"norm:{factor * ORDINARY[a]:g}")


def scripted(script: Callable[..., None], factor: float = 1.0) -> Make:
    return lambda a, seed: Setup(clip=f"norm:{factor * ORDINARY[a]:g}", script=script)


def spoken(losses: dict[str, Loss], **changes: object) -> Make:
    """One of these losses for each architecture, in a script that clips nothing."""
    return lambda a, seed: replace(
        Setup(build=told(a, losses), script=in_order),
        **changes,  # type: ignore[arg-type]
    )


def at(seed: int) -> int:
    """A step for a fault that strikes once, whatever the seed well before the end."""
    return 35 + 7 * (seed % 8)


HEALTHY: dict[str, tuple[tuple[str, ...], Make]] = {
    "plain": (EVERY, plain),
    "sgd": (
        (*FEED_FORWARD, "rnn", "gru", "lstm", "resnet", "graph", "tagger", "unet", "experts"),
        setup(optimizer="sgd"),
    ),
    "slow": (EVERY, setup(lr_factor=0.03)),
    "clipped": (EVERY, clipped(1.0)),
    "value": (SINGLE, setup(clip="value:1.0")),
    "deep_norm": ((*PLAIN_STACKS, "gan"), setup(knobs=knobs(depth=DEEP, norm=True))),
    "tanh": ((*PLAIN_STACKS, "gan"), setup(knobs=knobs(act="tanh"), build=xavier)),
    "wide": (("mlp", "rnn", "gru", "rl"), setup(knobs=knobs(width=128))),
    "long": (("rnn", "gru", "reader"), setup(knobs=knobs(length=32, recurrent_gain=1.0))),
    "recall": (
        ("rnn", "gru", "reader"),
        # gates that begin half open lose what stands at the start within a few steps
        setup(
            knobs=knobs(length=32, recurrent_gain=1.0), batch=only_the_start, build=gates_at(4.0)
        ),
    ),
    "frozen": (SINGLE, setup(build=freeze_first)),
    "converged": (
        ("mlp", "cnn", "gru", "embeddings", "resnet", "graph", "policy"),
        setup(warm=300),
    ),
    "scaler": (SINGLE, setup(scaler={})),
    "script": (SINGLE, scripted(right)),
    "script_halves": (SINGLE, scripted(halves)),
    "script_accumulated": (SINGLE, scripted(accumulated(False))),
    "script_unscaled": (SINGLE, scripted(scaled(True))),
    **HABITS,
    "in_order": (LOOPS, scripted(in_order)),
    "divided": (LOOPS, scripted(divided)),
    "frozen_list": (
        ("mlp", "cnn", "rnn", "resnet", "autoencoder"),
        lambda a, seed: Setup(build=hide_frozen, script=in_order),
    ),
    "half_sgd": (
        ("mlp", "cnn", "autoencoder", "siamese"),
        lambda a, seed: short(torch.float16, optimizer="sgd")(a, seed),
    ),
    "bfloat16": (
        ("mlp", "cnn", "transformer", "resnet", "autoencoder", "unet"),
        lambda a, seed: short(torch.bfloat16)(a, seed),
    ),
    "regression": (CLASSIFIERS, spoken(dict.fromkeys(CLASSIFIERS, squared))),
    "one_class": (
        tuple(MISTAKEN),
        spoken(
            {
                **dict.fromkeys(CLASSIFIERS, one_against_the_others),
                **dict.fromkeys(("autoencoder", "unet"), pixels_of_1),
            }
        ),
    ),
    "large_targets": (
        CLASSIFIERS,
        spoken(dict.fromkeys(CLASSIFIERS, in_units(8.0, 8.0)), steps=150, lr_factor=3.0),
    ),
}
"""Variant -> (architectures, setup)."""


def deep(act: str, **rest: object) -> Make:
    return setup(knobs=knobs(act=act, depth=DEEP), **rest)


def half(scale: float, lr: float) -> Make:
    """Weights, inputs and gradients in float16, with the loss brought to a size."""

    def to_half(task: Task) -> None:
        task.model.half()
        for player in task.players:
            inner = player.loss
            player.loss = lambda b, inner=inner: inner(  # type: ignore[misc]
                tuple(t.half() if t.is_floating_point() else t for t in b)
            )

    return lambda a, seed: Setup(
        build=to_half, optimizer="sgd", lr_factor=lr, loss=lambda step, loss: loss.float() * scale
    )


def short(dtype: torch.dtype, **rest: object) -> Make:
    """Weights and inputs in two bytes each; the loss is summed up in float32."""

    def build(task: Task) -> None:
        task.model.to(dtype)
        for player in task.players:
            inner = player.loss
            player.loss = lambda b, inner=inner: inner(  # type: ignore[misc]
                tuple(t.to(dtype) if t.is_floating_point() else t for t in b)
            )

    return setup(build=build, loss=lambda step, loss: loss.float(), **rest)


def from_step(make: Callable[[int], object], name: str) -> Make:
    return lambda a, seed: replace(Setup(), **{name: make(at(seed))})  # type: ignore[arg-type]


def collapse(architecture: str, seed: int) -> Setup:
    return Setup(loss=edge_of_sqrt(at(seed)), scaler={"init_scale": 2.0**16})


def diverging_q(architecture: str, seed: int) -> Setup:
    """Bootstrapping from itself with a discount over 1: the deadly triad."""

    def build(task: Task) -> None:
        task.extra.update(discount=1.3, every=0)

    return Setup(build=build, lr_factor=3.0, steps=250)


def unbounded_critic(architecture: str, seed: int) -> Setup:
    """A critic that may raise its score for ever."""

    def build(task: Task) -> None:
        judge, maker = task.players[0].module, task.players[1].module
        task.players[0].loss = lambda b: judge(maker(b[1]).detach()).mean() - judge(b[0]).mean()
        task.players[1].loss = lambda b: -judge(maker(b[1])).mean()

    return Setup(build=build, lr_factor=5.0, steps=250)


LAGGING = {"rnn": 3.0, "resnet": 2.0, "sets": 3.0}
"""Learning rates at which a training does not bear steps a few times as long."""


def lagging(architecture: str, seed: int) -> Setup:
    """Gradients are held small by hooks for 250 steps, then let go: Adam's second moment lags."""

    def build(task: Task) -> None:
        def counted(batch: Batch) -> Tensor:
            losses[0] += 1
            return plain_loss(batch)

        plain_loss, losses = task.players[0].loss, [0]
        task.players[0].loss = counted
        for parameter in task.model.parameters():
            parameter.register_hook(lambda g: g * (0.01 if losses[0] <= 250 else 1.0))

    return Setup(build=build, lr_factor=LAGGING[architecture], warm=200)


FAULTS: dict[str, Fault] = {
    # SG1: numbers
    "nan_batch": Fault(
        ("SG101",),
        ("mlp", "cnn", "rnn", "gru", "gan", "rl", "autoencoder", "resnet", "vae", "graph",
         "policy", "unet", "siamese", "experts", "flow", "denoiser", "sets"),
        from_step(nan_batch, "batch")),
    "nan_operation": Fault(("SG101",), SINGLE, from_step(edge_of_sqrt, "loss")),
    "broken_checkpoint": Fault(("SG103",), SINGLE, setup(build=break_weights)),
    "loss_infinite": Fault(("SG104",), SINGLE, setup(loss=infinite_log)),
    "half_overflow": Fault(
        ("SG105",), ("mlp", "cnn", "autoencoder"), half(3e5, 1e-7)),
    "half_underflow": Fault(
        ("SG106",), ("mlp", "cnn", "autoencoder"), half(1e-6, 1.0)),
    "scale_collapsed": Fault(("SG503", "SG101"), SINGLE, collapse, "scaler"),
    "scale_stuck": Fault(
        ("SG503", "SG105"), SINGLE,
        setup(
            loss=lambda step, loss: loss * 1e6,
            scaler={"init_scale": 2.0**127, "growth_factor": 1.0001, "backoff_factor": 0.99999},
        ),
        "scaler"),
    "half_adam": Fault(
        ("SG107",), ("mlp", "cnn", "autoencoder", "siamese"),
        short(torch.float16), "half_sgd"),
    "rate_nan": Fault(
        ("SG107",), ("mlp", "rnn", "transformer", "resnet", "unet"),
        setup(schedule=lambda step: 1.0 if step < 50 else math.nan), "cosine"),
    "rounded_away": Fault(
        ("SG108",), ("mlp", "cnn", "transformer", "resnet", "autoencoder", "unet"),
        short(torch.bfloat16, lr_factor=0.01), "bfloat16"),
    # SG2: exploding
    "outliers": Fault(
        ("SG202",), ("mlp", "rl", "autoencoder"),
        setup(batch=outliers(300.0), optimizer="sgd", lr_factor=0.01), "slow"),
    "deep_large": Fault(
        ("SG203", "SG501", "SG502", "SG102"), ("mlp", "cnn", "rl", "autoencoder"),
        deep("relu", build=scale_weights(6.0)), "deep_norm"),
    "depth_growth": Fault(
        ("SG203", "SG102"), PLAIN_STACKS, deep("steep"), "deep_norm",
        # the first forward pass overflows in the exp of a log variance, before any gradient is
        # there; and makes a policy certain, whose gradients are 0 from the first step on
        also={"vae": ("SG101",), "policy": ("SG302",)}),
    "runaway_loss": Fault(("SG102", "SG201"), SINGLE, setup(loss=runaway)),
    "dominant_scale": Fault(
        ("SG205", "SG502"), ("mlp", "rl", "autoencoder"),
        lambda a, seed: Setup(
            build=one_steep_tensor, clip=f"norm:{ORDINARY[a]:g}", optimizer="sgd", lr_factor=0.1),
        "clipped"),
    "recurrent_radius": Fault(
        ("SG204", "SG102"), ("rnn",),
        # with 1.6 not every seed explodes: half of the units sleep, and the product shrinks
        setup(knobs=knobs(length=32, recurrent_gain=1.8, nonlinearity="relu"), optimizer="sgd"),
        "long"),
    "recurrent_radius_adam": Fault(
        ("SG204", "SG102"), ("rnn",),
        setup(knobs=knobs(length=32, recurrent_gain=2.5, nonlinearity="relu")), "long"),
    "exploding_gates": Fault(
        ("SG204", "SG102"), ("gru", "reader", "lstm", "tagger"),
        setup(knobs=knobs(length=32), build=grows), "long"),
    "unbounded_critic": Fault(("SG201", "SG102"), ("gan",), unbounded_critic),
    "diverging_q": Fault(("SG201", "SG102", "SG502"), ("rl",), diverging_q),
    "lagging_moment": Fault(
        # after gradients that were held small, ordinary ones are a growth of the norm as well
        ("SG207", "SG201", "SG202"), tuple(LAGGING), lagging, "converged"),
    "unnormalised": Fault(
        ("SG505", "SG205", "SG302"), ("mlp", "autoencoder", "vae"),
        setup(batch=unnormalised)),
    # SG3: vanishing and dead
    "deep_sigmoid": Fault(
        ("SG301", "SG304"), (*PLAIN_STACKS, "gan"), deep("sigmoid"),
        "deep_norm"),
    "deep_small": Fault(
        ("SG301", "SG501"), PLAIN_STACKS,
        deep("tanh", build=scale_weights(0.1)), "tanh"),
    "saturated": Fault(
        ("SG304", "SG501"), PLAIN_STACKS,
        setup(knobs=knobs(act="tanh", depth=5), build=scale_weights(60.0)), "tanh"),
    "saturating": Fault(
        ("SG304", "SG301"), PLAIN_STACKS,
        setup(knobs=knobs(act="tanh", depth=5), build=saturate_biases), "tanh"),
    "forgetting": Fault(
        ("SG305",), ("rnn",),
        setup(knobs=knobs(length=32, recurrent_gain=0.3), batch=only_the_start), "recall"),
    "forgetting_gates": Fault(
        ("SG305",), ("gru", "reader"),
        setup(knobs=knobs(length=32), batch=only_the_start, build=gates_at(-6.0)), "recall"),
    "dead_relu": Fault(
        ("SG302",), PLAIN_STACKS, setup(build=kill_units)),
    "masked": Fault(("SG302",), SINGLE, setup(loss=masked)),
    "detached": Fault(
        ("SG303",), ("mlp", "cnn", "rnn", "gru", "autoencoder", "rl", "graph", "policy", "unet",
         "siamese", "denoiser", "sets"),
        setup(build=detach_first),
        "frozen"),
    "detached_embedding": Fault(
        ("SG303",), ("lstm", "transformer", "embeddings", "tagger", "seq2seq", "dilated"),
        setup(build=detach_embedding), "frozen"),
    "unused": Fault(
        ("SG303",), tuple(a for a in EVERY if a != "rl"), setup(build=add_unused), "frozen"),
    # SG4: the clipping
    "over_clipped": Fault(("SG401",), EVERY, clipped(1e-3), "clipped"),
    "never_reached": Fault(("SG402",), EVERY, clipped(3e3), "clipped"),
    "value_distorts": Fault(("SG403",), SINGLE, setup(clip="value:0.0001"), "value"),
    "before_backward": Fault(("SG404",), SINGLE, scripted(before_backward), "script"),
    "after_step": Fault(("SG405", "SG404"), SINGLE, scripted(after_step), "script"),
    "before_unscale": Fault(
        ("SG406",), SINGLE, scripted(scaled(False)), "script_unscaled"),
    "per_micro_batch": Fault(
        ("SG407",), SINGLE, scripted(accumulated(True)), "script_accumulated"),
    "partly": Fault(("SG408",), SINGLE, scripted(part), "script_halves"),
    "twice": Fault(("SG409",), SINGLE, scripted(twice), "script"),
    "gradients_passed": Fault(("SG410",), SINGLE, scripted(gradients), "script"),
    "infinite_limit": Fault(("SG411",), SINGLE, scripted(infinite), "script"),
    # SG5: set-up
    "zeros": Fault(("SG501", "SG302"), PLAIN_STACKS, setup(build=fill_weights(0.0))),
    "constant": Fault(("SG501",), PLAIN_STACKS, setup(build=fill_weights(0.05))),
    "rate_adam": Fault(
        ("SG502", "SG302", "SG304", "SG201", "SG202"), ("mlp", "cnn", "rnn", "gru", "lstm",
         "transformer", "autoencoder", "rl", "vae", "tagger", "seq2seq", "unet", "denoiser",
         "dilated", "sets"), setup(lr_factor=300.0)),
    "rate_sgd": Fault(
        ("SG502", "SG102", "SG201", "SG302"), ("mlp", "cnn", "rl", "autoencoder"),
        setup(optimizer="sgd", lr_factor=300.0), "sgd"),
    "divided_late": Fault(("SG504",), SINGLE, scripted(divided_late), "script"),
    "averaged_late": Fault(
        ("SG504",), ("mlp", "lstm", "transformer", "autoencoder", "resnet", "policy", "flow",
         "seq2seq"),
        scripted(averaged_late), "script_accumulated"),
    "heavy_decay": Fault(
        ("SG506",), ("mlp", "cnn", "rnn", "gru", "autoencoder", "unet"),
        setup(decay=3.0, steps=150), "decay"),
    "unscaled_targets": Fault(
        ("SG507",), CLASSIFIERS,
        spoken(dict.fromkeys(CLASSIFIERS, in_units(1e6, 3e6))), "large_targets"),
    # SG6: the loop
    "never_cleared": Fault(("SG601",), LOOPS, scripted(never_cleared), "in_order"),
    "cleared_early": Fault(("SG602",), LOOPS, scripted(cleared_early), "in_order"),
    "replaced": Fault(
        ("SG604",), tuple(a for a in LOOPS if a != "unet"), scripted(replaced), "in_order"),
    "plain_list": Fault(
        ("SG603",), ("mlp", "cnn", "rnn", "resnet", "autoencoder"),
        lambda a, seed: Setup(build=hide_layer, script=in_order), "frozen_list"),
    "undivided": Fault(("SG607",), LOOPS, scripted(undivided), "divided"),
    "rate_gone": Fault(
        ("SG605",), ("mlp", "cnn", "rnn", "transformer", "autoencoder", "unet"),
        setup(schedule=lambda step: 1.0 if step < 4 else 1e-4), "cosine"),
    "double_softmax": Fault(
        ("SG606",), ("mlp", "cnn", "rnn", "transformer"),
        lambda a, seed: Setup(build=softened, script=in_order), "in_order"),
    "all_pairs": Fault(("SG608",), CLASSIFIERS, spoken(PAIRS), "regression"),
    "wrong_targets": Fault(("SG609",), tuple(MISTAKEN), spoken(MISTAKEN), "one_class"),
}  # fmt: skip
"""Name -> fault."""
