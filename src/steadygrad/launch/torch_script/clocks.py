"""When clip calls and steps last happened, in backward passes.

Parameters that have always come together share one clock, so that a call over a whole model moves
one clock and not one for each of its parameters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace


@dataclass
class Clock:
    """When things last happened to some parameters.

    Attributes:
        step: backward passes before their last step.
        stepped: whether there was one.
        clip: backward passes before the last clip call on them; -1 for none.
        clips: clip calls since that step.
        members: parameters that share it.
    """

    step: int = 0
    stepped: bool = False
    clip: int = -1
    clips: int = 0
    members: int = 0


class Clocks:
    """The clocks of all parameters.

    Example:
        >>> clocks = Clocks()
        >>> both, = clocks.of([1, 2])
        >>> both.clip = 7
        >>> [clock.clip for clock in clocks.of([2])], len(clocks.of([1, 2])), len(clocks.of([3, 1]))
        ([7], 2, 2)
    """

    def __init__(self) -> None:
        self._each: dict[int, Clock] = {}
        self._known: dict[tuple[int, ...], list[Clock]] = {}

    def of(self, ids: Sequence[int]) -> list[Clock]:
        """The clocks of these parameters and of no others, that of the first one first.

        Args:
            ids: of the parameters.
        """
        key = tuple(ids)
        found = self._known.get(key)
        return self._part(key) if found is None else found

    def _part(self, ids: tuple[int, ...]) -> list[Clock]:
        """Where others share their clocks, give these parameters clocks of their own."""
        members = set(ids)
        clocks = {id(clock): clock for each in ids if (clock := self._each.get(each)) is not None}
        if sum(clock.members for clock in clocks.values()) != len(members):
            self._split(members)
            clocks = {id(clock): clock for each in ids if (clock := self._each[each])}
        found = self._known[ids] = list(clocks.values())
        return found

    def _split(self, members: set[int]) -> None:
        own: dict[int, Clock] = {}
        new = Clock()
        for each in members:
            old = self._each.get(each)
            if old is not None:
                old.members -= 1
            mine = new if old is None else own.setdefault(id(old), replace(old, members=0))
            mine.members += 1
            self._each[each] = mine
        self._known = {}  # who shares a clock has changed
