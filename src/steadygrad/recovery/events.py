"""What recovery did, as an event of the run file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Final, Protocol

from steadygrad.vocabulary import RECOVERY, RecoveryAct

SKIP: Final = "skip"
LEAVE_OUT: Final = "leave out"
ROLLBACK: Final = "rollback"
ACCEPT: Final = "accept"
STOP: Final = "stop"
RESTORE: Final = "restore"
RESTART: Final = "restart"
SHRINK: Final = "shrink"
LOWER_RATE: Final = "lower rate"
PERSISTENT: Final = "persistent"
TRANSIENT: Final = "transient"
UNKNOWN: Final = "unknown"
"""What a replay says of a NaN or inf."""
ACTS: Mapping[RecoveryAct, str] = {
    SKIP: "the step was dropped whole",
    LEAVE_OUT: "the step was dropped because its batch is in the window after a rollback",
    ROLLBACK: "the training went back to a snapshot once the step was over",
    ACCEPT: "what had looked like a strike was taken for the data's new level",
    STOP: "nothing was left to do, and the training was ended with an error",
    RESTORE: "a new process went on from a snapshot on disk",
    RESTART: "the launcher started the job again once the step was over",
    SHRINK: "norms are held to their usual size for a while; this step's was larger",
    LOWER_RATE: "the learning rate is lower for a while from this step on",
}
"""Every act, and what it means."""


class EventLike(Protocol):
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
        step: number of the step that was struck; of `restore`, the step that comes next.
        act: one of `ACTS`.
        trigger: what struck it, such as ``loss spike``; empty for an act that nothing struck.
        to_step: of a rollback, restore, restart or stop: the step before which the snapshot was
            taken, so that the steps from `to_step` to `step` are undone; None without a snapshot.
        until: of `shrink` and `lower rate`: the last step that they may touch; None otherwise.
        nature: of a NaN or inf: ``persistent`` where a replay of the step shows it again,
            ``transient`` where it does not, ``unknown`` where the step could not be replayed;
            empty for anything else.
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
    until: int | None = None
    nature: str = ""
    optimizer: int = 0

    def as_json(self) -> dict[str, str | int | None]:
        """The event's details."""
        return {key: value for key, value in asdict(self).items() if key != "step"}

    @classmethod
    def from_json(cls, step: int, data: Mapping[str, object]) -> RecoveryEvent:
        """The event that `as_json` wrote; what is missing or odd is left out."""
        to, until, optimizer = (data.get(key) for key in ("to_step", "until", "optimizer"))
        return cls(
            step,
            str(data.get("act", "")),
            str(data.get("trigger", "")),
            to if isinstance(to, int) else None,
            until if isinstance(until, int) else None,
            str(data.get("nature", "")),
            optimizer if isinstance(optimizer, int) else 0,
        )

    def __str__(self) -> str:
        struck = ", ".join(word for word in (self.trigger, self.nature) if word)
        to = "" if self.to_step is None else f" to step {self.to_step}"
        until = "" if self.until is None else f" until step {self.until}"
        return f"step {self.step}: {struck + ': ' if struck else ''}{self.act}{to}{until}"


def events_of(events: Iterable[EventLike]) -> list[RecoveryEvent]:
    """What recovery did in a run, in order.

    Args:
        events: ``run.events``.
    """
    return [
        RecoveryEvent.from_json(event.step or 0, event.data)
        for event in events
        if event.kind == RECOVERY
    ]
