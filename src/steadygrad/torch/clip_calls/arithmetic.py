"""Clips that a script writes as arithmetic: gradients that change, and no clip call to be seen.

`for p in params: p.grad.mul_(limit / norm)` is a clip, whether it stands between backward and step
or inside an optimizer's own `step`. Figures of the gradients before and after tell it from a
division by the number of micro-batches, from noise and from weight decay.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence

import torch

from steadygrad import kernels
from steadygrad.policies.arithmetic import (
    COARSE,
    FINE,
    LOOKED_AT,
    Change,
    ChangesOfOnePlace,
    change_of,
    left_by,
)
from steadygrad.stats import GradientStats
from steadygrad.torch.gradients.outcome import UNTOUCHED, Applied

MOST_READ = 64
"""Backward passes that are read for them at most."""


class HandChanges:
    """Whether a script changes the gradients of one optimizer by arithmetic, and how.

    Args:
        name: of the optimizer's class.

    Attributes:
        looks: gradients are to be read after each backward.
        thread: in which it has stepped last; 0 before that.
        looks_inside: they are to be compared after the optimizer's own step.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._reading: tuple[list[int], bytearray] | None = None
        self._steps = self._read = self._not_followed = 0
        self._between, self._inside = ChangesOfOnePlace(), ChangesOfOnePlace()
        self.looks = self.looks_inside = True
        self.thread = 0

    def after_backward(self, parameters: Sequence[torch.Tensor]) -> None:
        """A backward is over, which may have reached these."""
        with_grads = [p for p in parameters if p.grad is not None]
        self._reading = None
        self._read += 1
        if not with_grads:
            self._may_rest()
            return
        sealed = kernels.seal([p.grad for p in with_grads if p.grad is not None])
        if sealed is None:  # on a device, or in pieces: what is there is not compared
            self.looks = False
            return
        self._reading = list(map(id, with_grads)), sealed
        self._may_rest()

    @property
    def has_clipped(self) -> bool:
        """Whether a clip was found."""
        return self._between.is_clip or self._inside.is_clip

    def forget(self) -> None:
        """Gradients come from elsewhere now than from the last backward."""
        self._reading = None

    def stepped(self) -> None:
        """A step begins; to be called alone where a clip call was seen before it."""
        self.thread = threading.get_ident()
        self._steps += 1
        self._may_rest()
        self.forget()

    def _may_rest(self) -> None:
        looked = self._steps >= LOOKED_AT or self._read >= MOST_READ
        self.looks = self.looks and (self._between.is_clip or not looked)
        self.looks_inside = self.looks_inside and (self._inside.is_clip or self._steps <= LOOKED_AT)

    def between(
        self, params: Sequence[torch.Tensor], after: GradientStats
    ) -> tuple[GradientStats, float, Applied]:
        """A step begins, before which no clip call was seen.

        Args:
            params: with gradients.
            after: figures of these as they are now.

        Returns:
            Figures before what the script has done to them, its limit, and what that left; for
            what is no clip the figures now.
        """
        reading = self._reading
        self.stepped()
        before = None
        if reading is not None and reading[0] == list(map(id, params)):
            before = _opened(reading[1], after)
        change = None
        if before is not None and isinstance(after.total_norm, float):
            change = self._judged(self._between, before, after, params)
        if before is None or change is None:
            return after, self._between.limit, UNTOUCHED
        return before, change.limit, Applied(*left_by(change, before, after))

    def inside(
        self, params: Sequence[torch.Tensor], before: GradientStats, after: GradientStats
    ) -> tuple[float, Applied]:
        """The optimizer's own step is over, in which no clip call was seen.

        Args:
            params: with gradients.
            before: their figures before it.
            after: and now.

        Returns:
            The limit of a clip in it, and what that left.
        """
        self._may_rest()
        change = None
        if isinstance(before.total_norm, float) and before.names == after.names:
            change = self._judged(self._inside, before, after, params)
        if change is None:
            return self._inside.limit, UNTOUCHED
        return change.limit, Applied(*left_by(change, before, after))

    def _judged(
        self,
        kind: ChangesOfOnePlace,
        before: GradientStats,
        after: GradientStats,
        params: Sequence[torch.Tensor],
    ) -> Change | None:
        """The change, where it is a clip."""
        coarse = any(p.grad is not None and p.grad.element_size() < 4 for p in params)
        change = change_of(before, after, COARSE if coarse else FINE)
        if change is None:
            kind.left_alone(float(before.total_norm))
            return None
        if kind.accepts(change, COARSE if coarse else FINE):
            self._may_rest()
            return change._replace(limit=kind.limit)
        if kind is self._between and after.total_norm and not kind.only_divides:
            self._not_followed = self._steps
        return None

    def sentence(self) -> str:
        """What to say of gradients that were changed otherwise than by a clip; empty for none."""
        if not self._not_followed:
            return ""
        changes = f"the gradients of its {self._name} by itself between backward() and step()"
        if self._between.is_clip:
            first = f"of its first {self._not_followed} steps" if self._not_followed > 1 else ""
            first = first or "of its first step"
            return f"the script clips {changes}: norms on record {first} are those after that"
        return (
            f"the script changes {changes}, in a way that is not followed: norms on record are "
            "those after it. Where that is meant to clip, type torch.nn.utils.clip_grad_norm_ in "
            "its place"
        )


def _opened(sealed: bytearray, like: GradientStats) -> GradientStats:
    read = kernels.native.opened(sealed)
    return GradientStats(like.names, *read[:4], like.sizes, read.total)
