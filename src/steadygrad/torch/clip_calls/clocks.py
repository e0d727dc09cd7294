"""When clip calls and steps last happened, in backward passes.

Parameters that have always come together share one clock, so that a call over a whole model moves
one clock and not one for each of its parameters.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch

from steadygrad.kernels.native import Stamped


class WeightAtCall(NamedTuple):
    """A weight and its gradient at a clip call, held weakly."""

    weight: weakref.ref[torch.Tensor]
    gradient: weakref.ref[torch.Tensor]
    version: int

    @classmethod
    def of(cls, weight: torch.Tensor) -> WeightAtCall | None:
        """Mark a weight; None where it has no gradient."""
        if weight.grad is None:
            return None
        return cls(weakref.ref(weight), weakref.ref(weight.grad), weight._version)

    @property
    def is_gone(self) -> bool:
        """Whether the gradient is another one now, or of other weights."""
        weight = self.weight()
        if weight is None:
            return False
        return weight._version != self.version or self.gradient() is not weight.grad


@dataclass
class Clock:
    """When things last happened to some parameters.

    Attributes:
        step: backward passes before their last step.
        stepped: whether there was one.
        clip: backward passes before the last clip call on them; -1 for none.
        clips: clip calls since that step, on the gradients at hand.
        renewals: how often since that step the gradients were made anew after a clip call, as SAM
            does at other weights.
        mark: what stood there at the last clip call; None before one.
        broken: whether that call found a norm that is not finite, which no later pass makes finite.
        members: parameters that share it.
    """

    step: int = 0
    stepped: bool = False
    clip: int = -1
    clips: int = 0
    renewals: int = 0
    mark: WeightAtCall | None = None
    broken: bool = False
    members: int = 0

    @property
    def is_renewed(self) -> bool:
        """Whether gradients were computed anew since the last clip call, as far as can be known."""
        return self.mark is not None and (self.broken or self.mark.is_gone)

    @property
    def is_of_others(self) -> bool:
        """Whether the weight of the last clip call is gone: its id may be another's now."""
        return self.mark is not None and self.mark.weight() is None

    def begins_anew(self) -> None:
        """No clip call was on the gradients at hand."""
        self.clips, self.renewals, self.mark = 0, 0, None

    def stepped_at(self, now: int) -> None:
        """Their optimizer has stepped."""
        self.step, self.stepped, self.clips, self.renewals, self.mark = now, True, 0, 0, None

    def clipped_at(self, now: int, mark: WeightAtCall | None) -> None:
        """A clip call is made on them."""
        self.clip, self.clips, self.mark, self.broken = now, self.clips + 1, mark, False


class Clocks(Stamped):
    """The clocks of all parameters.

    Example:
        >>> clocks = Clocks()
        >>> both, = clocks.of([1, 2])
        >>> both.clip = 7
        >>> [clock.clip for clock in clocks.of([2])], len(clocks.of([1, 2])), len(clocks.of([3, 1]))
        ([7], 2, 2)

    Attributes:
        sharing: the clocks of ids that were asked for; another dict whenever a clock is split.
    """

    def __init__(self) -> None:
        self._each: dict[int, Clock] = {}
        self.sharing: dict[tuple[int, ...], list[Clock]] = {}

    def of(self, ids: Sequence[int]) -> list[Clock]:
        """The clocks of these parameters and of no others, that of the first one first.

        Args:
            ids: of the parameters.
        """
        key = tuple(ids)
        clocks = self.sharing.get(key)
        return self._part(key) if clocks is None else clocks

    def _part(self, ids: tuple[int, ...]) -> list[Clock]:
        """Where others share their clocks, give these parameters clocks of their own."""
        members = set(ids)
        clocks = {id(clock): clock for each in ids if (clock := self._each.get(each)) is not None}
        if sum(clock.members for clock in clocks.values()) != len(members):
            self._split(members)
            clocks = {id(clock): clock for each in ids if (clock := self._each[each])}
        shared = self.sharing[ids] = list(clocks.values())
        return shared

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
        self.sharing = {}  # who shares a clock has changed
