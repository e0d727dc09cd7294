"""What recovery did, as an event of the run file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

KIND = "recovery"
"""Kind of the event."""


class Event(Protocol):
    """An event of a run file."""

    @property
    def kind(self) -> str:
        """Its kind."""

    @property
    def step(self) -> int | None:
        """The step it belongs to."""

    @property
    def data(self) -> Mapping[str, object]:
        """Its details."""


@dataclass(frozen=True)
class RecoveryEvent:
    """One act.

    Attributes:
        step: number of the step that was struck.
        act: ``skip``, ``leave out``, ``rollback``, ``accept`` or ``stop``.
        trigger: what struck it.
        to_step: step of the snapshot gone back to; None without a rollback.
        nature: of a NaN that was replayed: ``persistent`` or ``transient``; empty where not known.
        optimizer: number of the optimizer within the run.

    Example:
        >>> event = RecoveryEvent(7, "rollback", "weights not finite", 5)
        >>> RecoveryEvent.from_json(7, event.as_json()) == event, str(event)
        (True, 'step 7: weights not finite: rollback to step 5')
    """

    step: int
    act: str
    trigger: str = ""
    to_step: int | None = None
    nature: str = ""
    optimizer: int = 0

    def as_json(self) -> dict[str, str | int | None]:
        """The event's details."""
        return {
            "act": self.act,
            "trigger": self.trigger,
            "to_step": self.to_step,
            "nature": self.nature,
            "optimizer": self.optimizer,
        }

    @classmethod
    def from_json(cls, step: int, data: Mapping[str, object]) -> RecoveryEvent:
        """The event that `as_json` wrote; what is missing or odd is left out."""
        to, optimizer = data.get("to_step"), data.get("optimizer", 0)
        return cls(
            step,
            str(data.get("act", "")),
            str(data.get("trigger", "")),
            to if isinstance(to, int) else None,
            str(data.get("nature", "")),
            optimizer if isinstance(optimizer, int) else 0,
        )

    def __str__(self) -> str:
        struck = ", ".join(word for word in (self.trigger, self.nature) if word)
        to = "" if self.to_step is None else f" to step {self.to_step}"
        return f"step {self.step}: {struck + ': ' if struck else ''}{self.act}{to}"


def events_of(events: Iterable[Event]) -> list[RecoveryEvent]:
    """What recovery did in a run, in order.

    Args:
        events: ``run.events``.
    """
    return [
        RecoveryEvent.from_json(event.step or 0, event.data)
        for event in events
        if event.kind == KIND
    ]
