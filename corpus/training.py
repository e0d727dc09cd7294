"""Run one case of the corpus in this process and leave a run file.

Two ways of recording: `attach`, and the observer of `steadygrad run` for scripts that
clip by themselves (its calls are made here where the launcher's patches would make them,
so that nothing in this process has to be patched).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from architectures import ARCHITECTURES, Batch, Knobs, Player, Task
from composed import COMPOSED
from torch import Tensor

import steadygrad.torch as sg
from steadygrad.launch.optimizers import OptimizerList
from steadygrad.launch.plan import Plan
from steadygrad.launch.torch_script.observer import TorchObserver
from steadygrad.runlog import RunWriter
from steadygrad.torch.gradients.parameters import parameters_of

OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "sgd": torch.optim.SGD,
    "rmsprop": torch.optim.RMSprop,
}
PROBES = 8
"""Batches on which is measured what was learned."""
SGD_FACTOR = 10.0
"""What turns a task's Adam learning rate into one for SGD with momentum."""


@dataclass
class Setup:
    """How a task is trained; the defaults are healthy. A fault changes some of it."""

    knobs: Knobs = field(default_factory=Knobs)
    steps: int = 100
    lr_factor: float = 1.0
    optimizer: str = ""
    decay: float = 0.0
    schedule: Callable[[int], float] | None = None
    clip: str = "none"
    warm: int = 0
    build: Callable[[Task], None] = lambda task: None
    batch: Callable[[int, Batch], Batch] = lambda step, batch: batch
    loss: Callable[[int, Tensor], Tensor] = lambda step, loss: loss
    scaler: dict[str, Any] | None = None
    script: Callable[[Script, Player, torch.optim.Optimizer, int], None] | None = None


@dataclass
class Trace:
    """What other detectors read: mean \\|g\\| and zero share of each weight, and the losses."""

    names: list[str] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    mean_abs: list[list[float]] = field(default_factory=list)
    norms: list[list[float]] = field(default_factory=list)
    zeros: list[list[float]] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    """What falls as the task is learned, on the same batches: untrained, and at the end."""

    def note(self, module: torch.nn.Module, loss: Tensor) -> None:
        weights = [(n, p) for n, p in module.named_parameters() if p.dim() > 1]
        self.names = [n for n, _ in weights]
        grads = [torch.zeros(1) if p.grad is None else p.grad.float() for _, p in weights]
        self.mean_abs.append([float(g.abs().mean()) for g in grads])
        self.norms.append([float(g.norm()) for g in grads])
        self.zeros.append([float((g == 0).float().mean()) for g in grads])
        self.losses.append(float(loss))

    def table(self, name: str) -> np.ndarray:
        return np.array(getattr(self, name), dtype=np.float64)


def run_case(architecture: str, seed: int, setup: Setup, path: Path, scored: bool = False) -> Trace:
    """Train, record into `path`, and return what others' rules need.

    Args:
        architecture: a key of `ARCHITECTURES` or `COMPOSED`.
        seed: of the weights and the batches.
        setup: healthy, or with a fault.
        path: a new run file.
        scored: measure what is learned, before and after.

    Returns:
        The first player's trace.
    """
    make = (ARCHITECTURES | COMPOSED)[architecture]
    probes = _probes(make(seed, setup.knobs), setup) if scored else []
    torch.manual_seed(seed)
    task = make(seed, setup.knobs)
    setup.build(task)
    untrained = _score(task, probes)
    optimizers = [_optimizer(task, player, setup) for player in task.players]
    for step in range(setup.warm):
        _plain_step(task, setup, optimizers, step, None)
    trace = Trace()
    with RunWriter(path, info={"framework": "torch", "policy": setup.clip, "seed": seed}) as writer:
        train = _observed if setup.script else _attached
        train(task, setup, optimizers, writer, trace)
    if scored and len(task.players) == 1:  # of two that play against each other no loss need fall
        trace.scores = [untrained, _score(task, probes)]
    return trace


def _probes(task: Task, setup: Setup) -> list[Batch]:
    """Batches as the last steps get them, drawn from a task that nobody trains."""
    return [setup.batch(setup.steps - 1, task.batch(0)) for _ in range(PROBES)]


@torch.no_grad()
def _score(task: Task, probes: list[Batch]) -> float:
    measure = task.score or task.players[0].loss
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return sum(float(measure(batch)) for batch in probes) / PROBES


def _optimizer(task: Task, player: Player, setup: Setup) -> torch.optim.Optimizer:
    kind = setup.optimizer or task.optimizer
    lr = task.lr * setup.lr_factor * (SGD_FACTOR if kind == "sgd" else 1.0)
    decay = {"weight_decay": setup.decay} if setup.decay else {}
    return OPTIMIZERS[kind](player.module.parameters(), lr=lr, **decay)


def _reschedule(setup: Setup, optimizer: torch.optim.Optimizer, step: int) -> None:
    if setup.schedule:
        for group in optimizer.param_groups:
            group["lr"] = group.setdefault("initial_lr", group["lr"]) * setup.schedule(step)


def _plain_step(
    task: Task,
    setup: Setup,
    optimizers: list[torch.optim.Optimizer],
    step: int,
    note: Callable[[int, Tensor], None] | None,
    scaler: Any = None,
) -> None:
    batch = setup.batch(step, task.batch(step))
    for index, (player, optimizer) in enumerate(zip(task.players, optimizers, strict=True)):
        _reschedule(setup, optimizer, step)
        optimizer.zero_grad()
        loss = setup.loss(step, player.loss(batch))
        (scaler.scale(loss) if scaler else loss).backward()
        if note:
            note(index, loss.detach())
        if scaler:
            scaler.step(optimizer)
            scaler.update()
        else:
            optimizer.step()


def _attached(
    task: Task,
    setup: Setup,
    optimizers: list[torch.optim.Optimizer],
    writer: RunWriter,
    trace: Trace,
) -> None:
    with contextlib.ExitStack() as stack:
        handles = [
            stack.enter_context(
                sg.attach(o, clip=setup.clip, model=task.model, run=writer, optimizer_index=i)
            )
            for i, o in enumerate(optimizers)
        ]

        def note(index: int, loss: Tensor) -> None:
            handles[index].observe_loss(loss)
            if index == 0:
                trace.note(task.players[0].module, loss)

        scaler = torch.amp.GradScaler("cpu", **setup.scaler) if setup.scaler is not None else None
        for step in range(setup.steps):
            _plain_step(task, setup, optimizers, step, note, scaler)


class Context:
    """What the observer needs of a run; a failure of ours ends the case."""

    def __init__(self, writer: RunWriter) -> None:
        self.plan = Plan("corpus")
        self.overhead = 0.0
        self.frameworks = ("torch",)
        self.optimizers = OptimizerList(self.writer)
        self._writer = writer

    def writer(self) -> RunWriter:
        """The run file's writer."""
        return self._writer

    def trouble(self, what: str, error: BaseException) -> None:
        """Raise it."""
        raise AssertionError(what) from error

    def mention(self, sentence: str) -> None:
        """Nobody reads it."""


class Script:
    """A training script as the observer of `steadygrad run` sees it."""

    def __init__(self, task: Task, setup: Setup, writer: RunWriter, trace: Trace) -> None:
        self.observer = TorchObserver(Context(writer))
        self.task, self.setup, self.trace = task, setup, trace
        self.scaler: Any = None

    def batch(self, step: int) -> Batch:
        return self.setup.batch(step, self.task.batch(step))

    def backward(self, loss: Tensor) -> None:
        scaled = self.scaler.scale(loss) if self.scaler else loss
        if self.scaler:
            self.observer.losses.scaled(scaled, torch.tensor(self.scaler.get_scale()))
        self.observer.before_backward([scaled], None)
        scaled.backward()
        self.observer.after_backward()
        self.trace.note(self.task.players[0].module, loss.detach())

    def clip(self, parameters: Iterator[Tensor] | list[Tensor], max_norm: float) -> None:
        given = list(parameters)
        call = self.observer.log.before(given, max_norm, 2.0, "norm")
        self.observer.log.after(call, torch.nn.utils.clip_grad_norm_(given, max_norm))

    def unscale(self, optimizer: torch.optim.Optimizer) -> None:
        unscaling = self.observer.before_unscale(parameters_of(optimizer))
        self.scaler.unscale_(optimizer)
        if unscaling is not None:
            self.observer.after_unscale(unscaling)

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        if self.scaler:
            before = optimizer.register_step_pre_hook(
                lambda o, a, k: self.observer.before_step(optimizer, a, k)
            )
            self.scaler.step(optimizer)
            self.scaler.update()
            before.remove()
        else:
            self.observer.before_step(optimizer, (optimizer,), {})
            optimizer.step()


def _observed(
    task: Task,
    setup: Setup,
    optimizers: list[torch.optim.Optimizer],
    writer: RunWriter,
    trace: Trace,
) -> None:
    script = Script(task, setup, writer, trace)
    assert setup.script is not None
    for step in range(setup.steps):
        for player, optimizer in zip(task.players, optimizers, strict=True):
            setup.script(script, player, optimizer, step)
    script.observer.finish()
