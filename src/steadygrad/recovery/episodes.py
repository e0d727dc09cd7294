"""What recovery did, in few words: acts that follow one another are told as one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

from steadygrad.recovery.events import RecoveryEvent

WORDS = {
    "skip": "skipped",
    "leave out": "left out",
    "rollback": "rolled back",
    "accept": "taken for a new level",
    "stop": "training ended",
    "restore": "restored",
}


class Episode(NamedTuple):
    """Successive acts of one kind.

    Attributes:
        first: step of the first of them.
        last: step of the last of them.
        times: how many there were.
        act: what was done.
        trigger: what struck; empty for nothing.
        to_step: step that was gone back to; None for none.
        nature: ``persistent``, ``transient`` or empty.
    """

    first: int
    last: int
    times: int
    act: str
    trigger: str = ""
    to_step: int | None = None
    nature: str = ""

    def __str__(self) -> str:
        where = f"step {self.first}"
        if self.times > 1:
            where = f"steps {self.first} to {self.last} ({self.times} of them)"
        struck = ", ".join(word for word in (self.trigger, self.nature) if word)
        back = "" if self.to_step in (None, self.first) else f", back to step {self.to_step}"
        done = WORDS.get(self.act, self.act) + back
        return f"{where}: {struck + '; ' if struck else ''}{done}"


def episodes(acts: Iterable[RecoveryEvent]) -> list[Episode]:
    """What was done with one optimizer, in order.

    Args:
        acts: of one optimizer.

    Example:
        >>> acts = [RecoveryEvent(7, "rollback", "loss spike", 5),
        ...         RecoveryEvent(8, "leave out"), RecoveryEvent(9, "leave out")]
        >>> [str(episode) for episode in episodes(acts)]
        ['step 7: loss spike; rolled back, back to step 5', 'steps 8 to 9 (2 of them): left out']
    """
    told: list[Episode] = []
    for act in acts:
        last = told[-1] if told else None
        if last is not None and _goes_on(last, act):
            told[-1] = last._replace(last=act.step, times=last.times + 1)
        else:
            told.append(
                Episode(act.step, act.step, 1, act.act, act.trigger, act.to_step, act.nature)
            )
    return told


def _goes_on(last: Episode, act: RecoveryEvent) -> bool:
    same = (last.act, last.trigger, last.nature) == (act.act, act.trigger, act.nature)
    return same and act.step == last.last + 1 and last.act not in ("rollback", "stop", "restore")


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
        (counts["skip"], f"{_many(counts['skip'], 'step')} skipped"),
        (counts["rollback"], f"{_many(counts['rollback'], 'rollback')}{back}"),
        (counts["leave out"], f"{_many(counts['leave out'], 'step')} left out"),
        (counts["accept"], f"{_many(counts['accept'], 'new level')} accepted"),
        (counts["restore"], f"restored {_many(counts['restore'], 'time')}"),
        (counts["stop"], "training ended"),
    ]
    return ", ".join(text for count, text in parts if count)


def _many(count: int, what: str) -> str:
    return f"{count:,} {what}" + "s" * (count != 1)
