"""Optimizers of shapes that packages have, for the tests of several rooms."""

from __future__ import annotations

from collections import defaultdict
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
