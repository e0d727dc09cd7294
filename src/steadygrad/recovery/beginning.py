"""Whether a training is too hot from its first steps on, told once, and tried once.

No earlier weights did better, so there are none to compare with. What tells is that weights which
have gone further than they were long, in the first few dozen steps, have gained little. In 120
healthy trainings of the corpus they go 0.02 to 1.5 times their own size in 32 steps; where the
learning rate is 30 times too large, over twice. As that is no proof, a lower rate is tried from
the start, and stays where the loss comes down by it.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from steadygrad import robust
from steadygrad.recovery.triggers import FIRST, LASTING

LOOK = 2 * LASTING
"""Sound steps after which a training is looked at."""
LITTLE = 0.5
"""Share of the first loss that is left where little was gained."""
FAR = 2.0
"""Times their own size that weights have gone."""
AT_MOST = 0.125
"""The same under the rate that is tried."""
PAYS = 0.8
"""Share of the loss under the hot rate that the lower one must come to."""

Gone = Callable[[], "float | None"]
"""Tells how many times their own size the weights have gone since the training began."""


class Beginning:
    """Looks at the first losses of a training.

    Attributes:
        too_far: how many times too far the weights went; 1 as long as nothing was found.
        tries: whether a lower rate is being tried.

    Example:
        >>> beginning = Beginning()
        >>> [beginning.is_too_hot(5.0, lambda: 3.0) for _ in range(32)].count(True)
        1
        >>> [beginning.pays(1.0) for _ in range(32)][-1], beginning.too_far
        (True, 24.0)
    """

    def __init__(self) -> None:
        self.too_far = 1.0
        self.tries = False
        self._losses: list[float] = []
        self._over = False
        self._hot = math.nan

    @property
    def doubtful(self) -> bool:
        """Whether the start may have to be gone back to."""
        return not self._over and len(self._losses) >= LASTING and self._gained_little()

    def is_too_hot(self, loss: float, gone: Gone) -> bool:
        """Whether the training is to begin anew; call it once a sound step.

        Args:
            loss: NaN where unknown.
            gone: asked once, where little was gained.
        """
        if self._over or self.tries:
            return False
        self._losses.append(loss)
        if len(self._losses) < LOOK:
            return False
        times = gone() if self._gained_little() else None
        if times is None or not times > FAR:
            self._over = True
            return False
        self.too_far, self.tries = times / AT_MOST, True
        self._hot = self._level()
        self._losses.clear()
        return True

    def pays(self, loss: float) -> bool | None:
        """Whether the rate that is tried is to stay; None as long as that is open."""
        self._losses.append(loss)
        if len(self._losses) < LOOK:
            return None
        self.tries, self._over = False, True
        return self._level() < PAYS * self._hot

    def _level(self) -> float:
        return robust.median(self._losses[-LASTING:])

    def _gained_little(self) -> bool:
        """False for losses that are unknown, or of both signs, of which no share can be said."""
        start = min(self._losses[0], robust.median(self._losses[:FIRST]))
        return start > 0 and self._level() > LITTLE * start
