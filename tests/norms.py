"""What a script of torch does at each step: bits of its weights, and norms by float64.

A script that begins with ``import norms; norms.tell()`` leaves a `told.json` where it is run.
"""

from __future__ import annotations

import atexit
import functools
import hashlib
import json
import math
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

HANDLE = "_steadygrad"
CLIPS = ("clip_grad_norm_", "clip_grad_value_")


class Norms:
    """Norms of what steps are given, as it was before the script's own clip calls.

    Attributes:
        steps: one of each step.
    """

    def __init__(self) -> None:
        self.steps: list[float] = []
        self._clipped: dict[torch.Tensor, tuple[torch.Tensor, torch.Tensor]] = {}
        self._functions = {name: getattr(torch.nn.utils, name) for name in CLIPS}
        for name, clip in self._functions.items():
            setattr(torch.nn.utils, name, functools.partial(self._clip, clip))
        self._hook = register_optimizer_step_pre_hook(self._before_step)

    def end(self) -> None:
        """Leave torch as it was."""
        self._hook.remove()
        for name, clip in self._functions.items():
            setattr(torch.nn.utils, name, clip)

    def _clip(
        self, clip: Callable[..., Any], parameters: Iterable[torch.Tensor], *args: Any, **more: Any
    ) -> Any:
        given = [parameters] if isinstance(parameters, torch.Tensor) else list(parameters)
        before = {p: self._unclipped(p) for p in given if p.grad is not None}
        norm = clip(given, *args, **more)
        for p, grad in before.items():
            self._clipped[p] = grad, _copy_of_grad(p)
        return norm

    def _unclipped(self, p: torch.Tensor) -> torch.Tensor:
        now = _copy_of_grad(p)
        before, left = self._clipped.get(p, (now, now))
        return before if torch.equal(left, now) else now

    def _before_step(self, optimizer: torch.optim.Optimizer, *_: object) -> None:
        given = [p for group in optimizer.param_groups for p in group["params"]]
        squares = [self._unclipped(p).square().sum() for p in given if p.grad is not None]
        self.steps.append(math.sqrt(sum(squares)))


def _copy_of_grad(p: torch.Tensor) -> torch.Tensor:
    assert p.grad is not None
    return p.grad.detach().double().clone()


def tell(plain: bool) -> None:
    """Write down, at exit, all that follows.

    Args:
        plain: nobody else looks on: take the norms, too.
    """
    torch.manual_seed(0)
    norms = Norms() if plain else None
    bits = hashlib.sha256()
    told: dict[str, list[Any]] = {"norms": [], "attached": []}

    def after(optimizer: torch.optim.Optimizer, *_: object) -> None:
        for group in optimizer.param_groups:
            for p in group["params"]:
                bits.update(p.detach().numpy().tobytes())
        if norms is not None:
            handle = getattr(optimizer, HANDLE, None)
            if handle is None:
                told["norms"].append(norms.steps[-1])
            else:
                told["attached"].append([float(handle.last.norm), norms.steps[-1]])

    def write() -> None:
        bits.update(torch.get_rng_state().numpy().tobytes())
        Path("told.json").write_text(json.dumps({"bits": bits.hexdigest(), **told}))

    register_optimizer_step_post_hook(after)
    atexit.register(write)
    _write_every_snapshot()


def _write_every_snapshot() -> None:
    """Have steps wait for snapshots on disk.

    One that is due while another is being written is left out, so that a training may go on from
    an earlier step where the machine is busy: both runs are to go on from the same.
    """
    start = threading.Thread.start

    def start_and_end(thread: threading.Thread) -> None:
        start(thread)
        if thread.name == "steadygrad-snapshot":
            thread.join()

    threading.Thread.start = start_and_end  # type: ignore[method-assign]
