"""Optimizers of shapes that packages have, for the tests of several rooms."""

from __future__ import annotations

import random
from collections import defaultdict, deque
from typing import Any

import torch


class SlowWeights(torch.optim.Optimizer):
    """A Lookahead as some packages have it: without torch's `__init__`, and so without hooks."""

    def __init__(self, inner: torch.optim.Optimizer) -> None:
        self.optimizer, self.state = inner, defaultdict(dict)
        self.param_groups = inner.param_groups
        for group in self.param_groups:
            group["counter"] = 0

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        loss = self.optimizer.step(closure)
        for group in self.param_groups:
            for p in group["params"] if group["counter"] == 0 else ():
                slow = self.state[p].setdefault("slow", p.detach().clone())
                p.copy_(slow.lerp_(p, 0.5))
            group["counter"] = (group["counter"] + 1) % 3
        return loss


class Lookahead(torch.optim.Optimizer):
    """Zhang et al. (2019): slow weights behind an inner optimizer that has its own state."""

    def __init__(self, params: Any) -> None:
        self.inner = [torch.optim.Adam(params, lr=0.1)]
        self.slow = [p.detach().clone() for p in self.inner[0].param_groups[0]["params"]]
        self.count = torch.zeros(())
        super().__init__(self.inner[0].param_groups, {})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        loss = self.inner[0].step(closure)
        self.count += 1
        if self.count % 2 == 0:
            for p, slow in zip(self.param_groups[0]["params"], self.slow, strict=True):
                slow.lerp_(p, 0.5)
                p.copy_(slow)
        return loss


class Plan:
    """A schedule that an optimizer moves on by itself."""

    def __init__(self) -> None:
        self.count = 0

    def rate(self) -> float:
        self.count += 1
        return 1.0 / self.count


class Remembers(torch.optim.Optimizer):
    """Keeps what its steps write in its groups, in a helper, in a queue, and in random numbers.

    As RAdam does in several packages, it looks step sizes up that an earlier step has written.
    """

    def __init__(self, params: Any, lr: float = 0.01) -> None:
        super().__init__(params, {"lr": lr, "buffer": [[None, None] for _ in range(10)]})
        self.plan, self.random, self.rates = Plan(), random.Random(3), deque[float](maxlen=2)

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        with torch.enable_grad():
            loss = None if closure is None else closure()
        rate = self.plan.rate()
        self.rates.append(rate * (1 + self.random.random()))
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                state["step"] = state.get("step", 0) + 1
                row = group["buffer"][state["step"] % 10]
                if row[0] != state["step"]:
                    row[:] = state["step"], group["lr"]
                p.sub_(p.grad, alpha=row[1] * sum(self.rates))
        return loss


class TwoKinds(torch.optim.Optimizer):
    """Moves matrices by an optimizer inside, and the rest by copies of another precision."""

    def __init__(self, params: Any) -> None:
        weights = list(params)
        super().__init__(weights, {})
        self.rest = [p for p in weights if p.ndim != 2]
        self.copies = [p.detach().double().requires_grad_() for p in self.rest]
        self.parts = {
            "matrices": torch.optim.Muon([p for p in weights if p.ndim == 2], lr=0.01),
            "rest": torch.optim.SGD(self.copies, lr=0.01, momentum=0.9),
        }

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        with torch.enable_grad():
            loss = None if closure is None else closure()
        for p, copy in zip(self.rest, self.copies, strict=True):
            copy.grad = None if p.grad is None else p.grad.double()
        for part in self.parts.values():
            part.step()
        for p, copy in zip(self.rest, self.copies, strict=True):
            p.copy_(copy)
        return loss
