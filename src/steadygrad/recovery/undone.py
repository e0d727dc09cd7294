"""Which recorded steps a rollback took back, so that no weights hold anything of them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from steadygrad.recovery.events import (
    LEAVE_OUT,
    RESTART,
    ROLLBACK,
    SKIP,
    STOP,
    RecoveryEvent,
)

GOES_BACK = (ROLLBACK, STOP, RESTART)
DROPS = (SKIP, LEAVE_OUT, ROLLBACK, STOP)
"""Acts after which nothing remains of the step that they were done to."""


class Stretch(NamedTuple):
    """Successive steps of one optimizer that were taken back.

    Attributes:
        first: number of the first of them.
        last: number of the last of them, the one that was struck.
    """

    first: int
    last: int


def stretches(acts: Iterable[RecoveryEvent]) -> list[Stretch]:
    """What one optimizer's rollbacks took back.

    Args:
        acts: what recovery did with one optimizer.

    Returns:
        Stretches that do not touch, ascending.

    Example:
        >>> stretches([RecoveryEvent(9, "rollback", to_step=5), RecoveryEvent(12, "skip"),
        ...            RecoveryEvent(14, "rollback", to_step=3)])
        [Stretch(first=3, last=14)]
    """
    spans = sorted(
        (act.to_step, act.step)
        for act in acts
        if act.act in GOES_BACK and act.to_step is not None and act.to_step <= act.step
    )
    joined: list[Stretch] = []
    for first, last in spans:
        if joined and first <= joined[-1].last + 1:
            joined[-1] = Stretch(joined[-1].first, max(joined[-1].last, last))
        else:
            joined.append(Stretch(first, last))
    return joined


def undone(steps: NDArray[np.int64], acts: Iterable[RecoveryEvent]) -> NDArray[np.bool_]:
    """Which of one optimizer's steps were taken back.

    Args:
        steps: their numbers, ``[steps]``.
        acts: what recovery did with that optimizer.

    Returns:
        ``[steps]``.

    Example:
        >>> undone(np.arange(5), [RecoveryEvent(3, "rollback", to_step=2)])
        array([False, False,  True,  True, False])
    """
    spans = stretches(acts)
    if not spans:
        return np.zeros(len(steps), bool)
    first, last = np.array(spans).T
    place = np.searchsorted(first, steps, side="right") - 1
    return np.asarray((place >= 0) & (steps <= last[np.maximum(place, 0)]))
