"""What recovery did, in few words: acts that follow one another are told as one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

from steadygrad.recovery.events import (
    ACCEPT,
    LEAVE_OUT,
    LOWER_RATE,
    RESTART,
    RESTORE,
    ROLLBACK,
    SHRINK,
    SKIP,
    STOP,
    RecoveryEvent,
)

WORDS = {
    SKIP: "skipped",
    LEAVE_OUT: "left out",
    ROLLBACK: "rolled back",
    ACCEPT: "taken for a new level",
    STOP: "training ended",
    RESTORE: "restored",
    RESTART: "job started again",
    SHRINK: "norm held to its usual size",
    LOWER_RATE: "learning rate lowered",
}
_WHERE = {ROLLBACK: "to", STOP: "at", RESTART: "from"}
ALONE = (ROLLBACK, STOP, RESTORE, RESTART, LOWER_RATE)
"""Acts that are told one by one, however near to one another they are."""


class Episode(NamedTuple):
    """Successive acts of one kind.

    Attributes:
        first: step of the first of them.
        last: step of the last of them.
        times: how many there were.
        act: what was done.
        trigger: what struck; empty for nothing.
        to_step: step that was gone back to; None for none.
        until: the last step that the act may touch; None where it touches its own alone.
        nature: ``persistent``, ``transient`` or empty.
    """

    first: int
    last: int
    times: int
    act: str
    trigger: str = ""
    to_step: int | None = None
    until: int | None = None
    nature: str = ""

    def __str__(self) -> str:
        where = f"step {self.first}"
        if self.times > 1:
            where = f"steps {self.first} to {self.last} ({self.times} of them)"
        struck = ", ".join(word for word in (self.trigger, self.nature) if word)
        done = WORDS.get(self.act, self.act)
        if self.to_step is not None and self.act in _WHERE:
            done += f" {_WHERE[self.act]} step {self.to_step}"
        if self.until is not None and self.act == LOWER_RATE:
            done += f" until step {self.until}"
        return f"{where}: {struck + '; ' if struck else ''}{done}"


def episodes(acts: Iterable[RecoveryEvent]) -> list[Episode]:
    """What was done with one optimizer, in order.

    Args:
        acts: of one optimizer.

    Example:
        >>> acts = [RecoveryEvent(7, "rollback", "loss spike", 5),
        ...         RecoveryEvent(8, "leave out"), RecoveryEvent(9, "leave out")]
        >>> [str(episode) for episode in episodes(acts)]
        ['step 7: loss spike; rolled back to step 5', 'steps 8 to 9 (2 of them): left out']
    """
    joined: list[Episode] = []
    for act in acts:
        last = joined[-1] if joined else None
        if last is not None and _goes_on(last, act):
            joined[-1] = last._replace(last=act.step, times=last.times + 1)
        else:
            joined.append(
                Episode(
                    act.step, act.step, 1, act.act, act.trigger, act.to_step, act.until, act.nature
                )
            )
    return joined


def _goes_on(last: Episode, act: RecoveryEvent) -> bool:
    same = (last.act, last.trigger, last.nature) == (act.act, act.trigger, act.nature)
    return same and act.step == last.last + 1 and last.act not in ALONE


def counted(acts: Iterable[RecoveryEvent], undone: int = 0) -> str:
    """How often recovery did what.

    Args:
        acts: what it did.
        undone: how many steps rollbacks took back.

    Example:
        >>> counted([RecoveryEvent(7, "skip"), RecoveryEvent(9, "rollback", to_step=5)], 5)
        '1 step skipped, 1 rollback (5 steps taken back)'
    """
    counts = Counter(act.act for act in acts)
    back = f" ({_many(undone, 'step')} taken back)" if undone else ""
    parts = [
        (counts[SKIP], f"{_many(counts[SKIP], 'step')} skipped"),
        (counts[ROLLBACK], f"{_many(counts[ROLLBACK], 'rollback')}{back}"),
        (counts[LEAVE_OUT], f"{_many(counts[LEAVE_OUT], 'step')} left out"),
        (counts[SHRINK], f"{_many(counts[SHRINK], 'norm')} held down"),
        (counts[LOWER_RATE], f"learning rate lowered {_many(counts[LOWER_RATE], 'time')}"),
        (counts[ACCEPT], f"{_many(counts[ACCEPT], 'new level')} accepted"),
        (counts[RESTORE], f"restored {_many(counts[RESTORE], 'time')}"),
        (counts[RESTART], f"job started again {_many(counts[RESTART], 'time')}"),
        (counts[STOP], "training ended"),
    ]
    return ", ".join(text for count, text in parts if count)


def _many(count: int, what: str) -> str:
    return f"{count:,} {what}" + "s" * (count != 1)
