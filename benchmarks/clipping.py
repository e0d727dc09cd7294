"""Clipping and measuring, alone and with an optimizer: sets of gradients, and everyone
who can clip them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch

import steadygrad.torch as sg
from benchmarks.rows import Row, rows_of
from benchmarks.shapes import gpt2_small
from benchmarks.timing import Contender, best_of
from steadygrad import kernels

FAR = 1e9  # a threshold that nothing reaches
JIT_LIMIT = 1000  # more tensors than this take XLA and TensorFlow minutes to compile


SETS: dict[str, Callable[[], list[tuple[int, ...]]]] = {
    "GPT-2 small, 148 tensors, 124 M": gpt2_small,
    "1000 small tensors, 2 M": lambda: [(2000,)] * 1000,
    "LSTM, 8 tensors, 4 M": lambda: [
        tuple(p.shape) for p in torch.nn.LSTM(512, 512, 2).parameters()
    ],
    "20,000 tiny tensors, 80 k": lambda: [(4,)] * 20_000,
}
# below with all figures, clipping, folded below, folded clipping
TARGETS = {
    "GPT-2 small, 148 tensors, 124 M": (0.50, 1.00, 0.85, 0.85),
    "1000 small tensors, 2 M": (0.20, 0.30, 0.70, 0.75),
    "LSTM, 8 tensors, 4 M": (0.50, 1.00, 0.85, 0.97),
}
NO_TARGETS = (None,) * 4


def parameters(shapes: list[tuple[int, ...]]) -> list[torch.nn.Parameter]:
    """Parameters with gradients, seeded."""
    generator = torch.Generator().manual_seed(0)
    params = [torch.nn.Parameter(torch.zeros(shape)) for shape in shapes]
    for p in params:
        p.grad = torch.randn(p.shape, generator=generator)
    return params


def measuring(params: list[torch.nn.Parameter], target: float | None) -> list[Contender]:
    """Below the threshold, where only a figure is wanted."""
    clip = torch.nn.utils.clip_grad_norm_
    grads = [p.grad for p in params]
    flat = torch.cat([g.flatten() for g in grads])
    return [
        Contender("torch clip_grad_norm_", partial(clip, params, FAR)),
        Contender("torch get_total_norm", partial(torch.nn.utils.get_total_norm, grads)),
        Contender("steadygrad, per-tensor figures", partial(read_all, params), target=target),
        Contender(
            "steadygrad clip_grad_norm_", partial(sg.clip_grad_norm_, params, FAR), target=target
        ),
        Contender("per-layer monitor (norm().item())", partial(monitor, params)),
        Contender("one flat read (sum)", flat.sum),
        *elsewhere(grads, FAR),
    ]


def read_all(params: list[torch.nn.Parameter]) -> Any:
    """Norm, maximum, non-finite and zero count of every gradient, and the total norm."""
    return kernels.read([p.grad for p in params])


def monitor(params: list[torch.nn.Parameter]) -> list[float]:
    """What people write to look at their gradients: one figure, a synchronisation each."""
    return [p.grad.norm().item() for p in params]


def clipping(params: list[torch.nn.Parameter], target: float | None) -> list[Contender]:
    """Above the threshold: gradients are set anew before each run."""
    grads = [p.grad for p in params]
    saved = [g.clone() for g in grads]
    restore = partial(torch._foreach_copy_, grads, saved)
    threshold = float(torch.nn.utils.get_total_norm(grads)) / 2
    return [
        Contender(
            "torch clip_grad_norm_",
            partial(torch.nn.utils.clip_grad_norm_, params, threshold),
            restore,
        ),
        Contender(
            "steadygrad clip_grad_norm_",
            partial(sg.clip_grad_norm_, params, threshold),
            restore,
            target,
        ),
        *elsewhere(grads, threshold),
    ]


def elsewhere(grads: list[torch.Tensor], threshold: float) -> list[Contender]:
    """The clips of optax and TensorFlow, compiled, on arrays of their own."""
    if len(grads) > JIT_LIMIT:
        return []
    import jax
    import optax
    import tensorflow as tf

    arrays = [jax.numpy.asarray(g.numpy()) for g in grads]
    transform = optax.clip_by_global_norm(threshold)
    state = transform.init(arrays)
    update = jax.jit(lambda updates: transform.update(updates, state)[0])
    tensors = [tf.constant(g.numpy()) for g in grads]
    tf_clip = tf.function(lambda xs: tf.clip_by_global_norm(xs, threshold))
    return [
        Contender("optax clip_by_global_norm", lambda: jax.block_until_ready(update(arrays))),
        Contender("tf.clip_by_global_norm", lambda: tf_clip(tensors)[1].numpy()),
    ]


def stepping(shapes: list[tuple[int, ...]], factor: float, target: float | None) -> list[Contender]:
    """Clip and fused AdamW step; the threshold is the norm times `factor`."""
    contenders = []
    for name in ("torch clip_grad_norm_ + fused AdamW", "steadygrad attach + fused AdamW"):
        params = parameters(shapes)
        grads = [p.grad for p in params]
        saved = [g.clone() for g in grads]
        threshold = float(torch.nn.utils.get_total_norm(grads)) * factor
        optimizer = torch.optim.AdamW(params, lr=1e-6, fused=True)
        restore = partial(torch._foreach_copy_, grads, saved)
        if name.startswith("torch"):
            run = partial(clip_and_step, params, threshold, optimizer)
        else:
            sg.attach(optimizer, clip=f"norm:{threshold!r}")
            run = optimizer.step
        ours = None if name.startswith("torch") else target
        contenders.append(Contender(name, run, restore, ours))
    return contenders


def clip_and_step(
    params: list[torch.nn.Parameter], threshold: float, optimizer: torch.optim.Optimizer
) -> None:
    torch.nn.utils.clip_grad_norm_(params, threshold)
    optimizer.step()


def clipping_rows(threads: int, seconds: float, clock: str) -> Iterator[Row]:
    """Every set, measured and clipped, against every library."""
    for name, shapes_of in SETS.items():
        goals = TARGETS.get(name, NO_TARGETS)
        for case, make, goal in (
            ("below the threshold", measuring, goals[0]),
            ("clipping", clipping, goals[1]),
        ):
            contenders = make(parameters(shapes_of()), goal)
            yield from rows_of(threads, name, case, contenders, best_of(contenders, seconds, clock))


def stepping_rows(threads: int, seconds: float, clock: str) -> Iterator[Row]:
    """Every set, clipped and stepped."""
    for name, shapes_of in SETS.items():
        goals = TARGETS.get(name, NO_TARGETS)
        for case, factor, goal in (
            ("below, with fused AdamW", 10.0, goals[2]),
            ("clipping, with fused AdamW", 0.5, goals[3]),
        ):
            contenders = stepping(shapes_of(), factor, goal)
            yield from rows_of(threads, name, case, contenders, best_of(contenders, seconds, clock))
