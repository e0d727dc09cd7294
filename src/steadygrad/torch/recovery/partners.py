"""What a training holds beside weights and optimizer: schedulers, a loss scaler, what it names."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Protocol

import torch
from torch.optim.lr_scheduler import LRScheduler

from steadygrad.errors import UsageError
from steadygrad.torch.internals.alive import alive

_MOVING = (
    *("epoch", "_lr", "_step", "step_count", "best", "bad_epochs", "counter"),
    *("T_cur", "T_i", "_schedulers"),
)
"""How the names of those of a scheduler's figures end that change from step to step."""


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

    def met_scaler(self, scaler: torch.amp.GradScaler) -> None:
        """A loss scaler steps the optimizer: save and restore it too, unless one was named."""
        self.named.setdefault("scaler", scaler)

    def find(self, optimizer: torch.optim.Optimizer) -> None:
        """Find the schedulers of an optimizer, and the loss scaler where there is but one."""
        known_ids = {id(each) for each in self.named.values()}
        live = [e for e in alive(LRScheduler, torch.amp.GradScaler) if id(e) not in known_ids]
        schedulers = [e for e in live if isinstance(e, LRScheduler) and _optimizer(e) is optimizer]
        scalers = [e for e in live if isinstance(e, torch.amp.GradScaler) and e.is_enabled()]
        for each in sorted(schedulers, key=_settings):
            self.named[f"scheduler {len(self._schedulers())}"] = each
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


def _optimizer(scheduler: LRScheduler) -> object:
    return getattr(scheduler, "optimizer", None)  # a class of one's own may have none


def _settings(scheduler: LRScheduler) -> tuple[str, str]:
    """What a scheduler is by its class and arguments: the same in every process, at every step."""
    settings = {k: v for k, v in scheduler.state_dict().items() if not k.endswith(_MOVING)}
    return type(scheduler).__qualname__, repr(sorted(settings.items()))
