"""The script's clip calls, counted by where they stand, and sampled for the run file.

Every call of the first steps becomes an event, later ones are sampled, and calls that
stand otherwise than all before always are: a call a step would otherwise outweigh
the steps in the run file. Of calls for one tensor, of which a step has many, an eighth as
many do. The counts in the run's ``clip_calls`` are exact.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import SupportsFloat, TypedDict

ALL_BEFORE = 64
EVERY = 16
FOR_ONE = 8

Place = Mapping[str, float | str]
"""What tells a well-placed call from a misplaced one."""


class Count(TypedDict, total=False):
    """The calls of one `Place`, whose own keys stand beside these."""

    optimizer: int
    max_norm: float
    count: int
    first_step: int
    last_step: int


class CallBook:
    """Counts clip calls by where they stand."""

    def __init__(self) -> None:
        self._counts: dict[tuple[object, ...], Count] = {}
        self._last: dict[int, tuple[object, Count]] = {}

    def repeats(self, like: object, step: int, optimizer: int) -> bool:
        """Count a call that stands as the last one before this optimizer's steps.

        Args:
            like: as that one was entered with.
            step: as `enter` has it.
            optimizer: likewise.

        Returns:
            False, and nothing counted, where it has to be entered.
        """
        noted = self._last.get(optimizer)
        if noted is None or step < ALL_BEFORE or step % EVERY == 0:
            return False
        last, entry = noted
        if last is not like:
            return False
        entry["count"] += 1
        entry["last_step"] = step
        return True

    def enter(
        self,
        place: Place,
        step: int,
        optimizer: int,
        max_norm: SupportsFloat,
        for_one: bool = False,
        like: object = None,
    ) -> bool:
        """Count a call.

        Args:
            place: where it stands.
            step: number of the optimizer step that follows it.
            optimizer: that optimizer's number.
            max_norm: the call's threshold.
            for_one: it is for one tensor of several, so that a step may have many.
            like: what `repeats` tells others by that stand here, too.

        Returns:
            Whether this one is to become an event.
        """
        key = (optimizer, *place.items())  # whoever describes places names the same facts in order
        entry = self._counts.get(key)
        if entry is None:
            entry = self._counts[key] = {
                **place,  # type: ignore[typeddict-item]
                "optimizer": optimizer,
                "max_norm": number(max_norm),
                "count": 0,
                "first_step": step,
            }
        entry["count"] += 1
        entry["last_step"] = step
        if like is not None:
            self._last[optimizer] = (like, entry)
        rarer = FOR_ONE if for_one else 1
        return entry["count"] == 1 or step < ALL_BEFORE // rarer or step % (EVERY * rarer) == 0

    def summary(self) -> list[Count]:
        """Every way in which calls stood, with counts, the most frequent first."""
        return sorted(self._counts.values(), key=lambda entry: -entry["count"])


def number(value: SupportsFloat) -> float:
    """A figure as a float; NaN for what is none.

    Example:
        >>> number("a"), number(2)
        (nan, 2.0)
    """
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError):
        return math.nan
