"""What a training holds beside weights and optimizer: schedulers, a loss scaler, what it names."""

from __future__ import annotations

import copy
import gc
from collections.abc import Mapping
from typing import Protocol

import torch
from torch.optim.lr_scheduler import LRScheduler

from steadygrad.errors import UsageError

State = Mapping[str, object]


class Stateful(Protocol):
    """Anything with a state that checkpoints hold."""

    def state_dict(self) -> dict[str, object]:
        """Its state."""

    def load_state_dict(self, state_dict: dict[str, object]) -> object:
        """Go on from a state."""


class Partners:
    """Objects whose state goes with an optimizer's.

    Attributes:
        named: name -> object.
    """

    def __init__(self) -> None:
        self.named: dict[str, Stateful] = {}

    def remember(self, **objects: Stateful) -> None:
        """Save and restore these too.

        Raises:
            UsageError: one has no ``state_dict`` and ``load_state_dict``.
        """
        for name, each in objects.items():
            if not (hasattr(each, "state_dict") and hasattr(each, "load_state_dict")):
                raise UsageError(
                    f"remember({name}=...): a {type(each).__name__} has no state_dict() and "
                    "load_state_dict(), so it cannot be put back"
                )
        self.named |= objects

    def find(self, optimizer: torch.optim.Optimizer) -> None:
        """Find the schedulers of an optimizer, and the loss scaler where there is but one."""
        known = {id(each) for each in self.named.values()}
        scalers = []
        for each in gc.get_objects():
            kind = type(each)
            if id(each) in known:
                continue
            if issubclass(kind, LRScheduler) and each.optimizer is optimizer:
                self.named[f"scheduler {len(self._schedulers())}"] = each
            elif issubclass(kind, torch.amp.GradScaler) and each.is_enabled():
                scalers.append(each)
        if len(scalers) == 1:
            self.named.setdefault("scaler", scalers[0])

    def states(self) -> dict[str, dict[str, object]]:
        """Copies of all states."""
        return {name: copy.deepcopy(each.state_dict()) for name, each in self.named.items()}

    def restore(self, states: Mapping[str, Mapping[str, object]]) -> list[str]:
        """Put states back.

        Returns:
            Names of what was saved and is not here, or the other way round.
        """
        for name, state in states.items():
            if name in self.named:
                self.named[name].load_state_dict(copy.deepcopy(dict(state)))
        return sorted(states.keys() ^ self.named.keys())

    def _schedulers(self) -> list[str]:
        return [name for name in self.named if name.startswith("scheduler ")]
