"""What strikes a training, told from one step's loss and norm and those of the steps before it.

A value is compared with accepted steps before it alone. `robust` asks that it stands out of their
median by ratio and by deviations, and out of what the run has shown since it began: an ordinary
hard batch late in a training is no spike. `olmo` is the rule of OLMo-core's skip-step optimizers: a
mean plus so many standard deviations over the window.
"""

from __future__ import annotations

import math
from collections import deque
from typing import Final, Literal, NamedTuple

import numpy as np

from steadygrad import robust
from steadygrad.recovery.ladder import Ladder
from steadygrad.vocabulary import Trigger

FIRST = 8
"""Losses at the start whose median is the level a training began at."""
ENOUGH = 24
"""Accepted steps before which nothing is called a spike."""
REFRESH = 8
"""Accepted steps after which limits are computed anew."""
MOST_LOG = 700.0
"""A logarithm whose exponential a float still holds."""
RATIO = 10.0
"""Least factor of a spiking norm over the median before it."""
MOST_LEVELS = 512
"""Levels of the norm that are remembered."""
LASTING = 16
"""Steps over which a loss that lies over its start is a divergence."""
OVER_START = 0.5
"""Share of the loss at the start by which one that diverges lies over it."""
MOSTLY = 0.75
"""Share of those steps for which it does."""
HALF = 0.5
"""Share of what a training has gained that it must lose again before anybody asks why."""
HABIT, HABIT_STEPS = 4, 512
"""So many lone spikes in so many steps are part of a training: only larger ones count then."""
BROKEN = 1000.0
"""Times the usual norm over which a spike is never part of a training: its batch is broken."""

LOSS: Final = "loss not finite"
GRADIENTS: Final = "gradients not finite"
WEIGHTS: Final = "weights not finite"
NORM_SPIKE: Final = "norm spike"
LOSS_SPIKE: Final = "loss spike"
STATISTICS: Final = "statistics jump"
DIVERGED: Final = "sustained divergence"
TOO_HOT: Final = "too hot from the start"
NONFINITE: tuple[Trigger, ...] = (LOSS, GRADIENTS, WEIGHTS)


class Reading(NamedTuple):
    """What one step shows before it is applied.

    Attributes:
        step: its number.
        loss: NaN where unknown.
        norm: total norm of the gradients before clipping.
        loss_finite: whether the loss is finite; True where unknown.
        gradients_finite: whether all gradients are; True where a loss scaler looks after that.
        weights_finite: whether weights and buffers are; looked at where something else is not.
        statistics_steady: whether running statistics are what batches like those before make them.
    """

    step: int
    loss: float
    norm: float
    loss_finite: bool = True
    gradients_finite: bool = True
    weights_finite: bool = True
    statistics_steady: bool = True


class Fall(NamedTuple):
    """A loss that has lasted for a while far over one that the training has shown before.

    Attributes:
        lost: by how much.
        over_start: whether it lies over the loss at which the training began.
    """

    lost: float
    over_start: bool


class StepWatch:
    """Remembers accepted steps and names what strikes one.

    Args:
        ladder: its rule, window and sigma.

    Example:
        >>> watch = StepWatch(Ladder(skip=1))
        >>> for step in range(40):
        ...     watch.accept(Reading(step, 2.0, 1.0))
        >>> watch.trigger(Reading(40, 2.1, 1.2)), watch.trigger(Reading(40, 2.0, 90.0))
        ('', 'norm spike')
    """

    def __init__(self, ladder: Ladder) -> None:
        self._ladder = ladder
        self._losses: deque[float] = deque(maxlen=ladder.window)
        self._logs: deque[float] = deque(maxlen=ladder.window)
        self._accepted = 0
        self._first: list[float] = []
        self._levels: list[float] = []
        self._level_stride, self._since_level = 1, 0
        self._recent: deque[tuple[float, float]] = deque(maxlen=LASTING)
        self._lone: deque[tuple[int, float, float]] = deque(maxlen=HABIT)
        self._limits = (math.inf, math.inf)
        self._best = math.inf

    @property
    def usual_norm(self) -> float:
        """Median of the accepted norms; inf before there are enough."""
        return math.exp(robust.median(list(self._logs))) if len(self._logs) >= ENOUGH else math.inf

    def trigger(self, reading: Reading) -> Trigger | Literal[""]:
        """What strikes this step; empty for nothing."""
        if not reading.weights_finite:
            return WEIGHTS
        if not reading.loss_finite:
            return LOSS
        if not reading.gradients_finite:
            return GRADIENTS
        if not reading.statistics_steady:
            return STATISTICS
        log = _log(reading.norm)
        loss_limit, norm_limit = self._limits
        habit = self._habit(reading.step)
        if log > max(norm_limit, habit[1]):
            return NORM_SPIKE
        if reading.loss > max(loss_limit, habit[0]):
            return LOSS_SPIKE
        self._recent.append((reading.loss, log))
        return DIVERGED if self._diverges() else ""

    def limits(self, step: int) -> tuple[float, float]:
        """Loss and norm over which this step will be a spike; inf where nothing is known yet."""
        loss, log = map(max, zip(self._limits, self._habit(step), strict=True))
        return loss, math.exp(log) if log < MOST_LOG else math.inf

    def accept(self, reading: Reading) -> None:
        """The step is sound, and is applied."""
        log = _log(reading.norm)
        if math.isfinite(log):
            self._logs.append(log)
        if math.isfinite(reading.loss):
            self._losses.append(reading.loss)
            if len(self._first) < FIRST:
                self._first.append(reading.loss)
        self._accepted += 1
        if self._accepted % REFRESH == 0:
            if self._logs:
                self._add_level(float(np.quantile(list(self._logs)[-REFRESH:], 0.9)))
            self._limits = self._new_limits()
            if len(self._losses) >= LASTING:
                self._best = min(self._best, robust.median(list(self._losses)[-LASTING:]))

    def fall(self) -> Fall | None:
        """Whether the loss has fallen back for a while; the data may have become harder, too."""
        if len(self._recent) < LASTING:
            return None
        losses = np.array([loss for loss, _ in self._recent])
        if not self._first:
            return None
        level, start = robust.median(losses), robust.median(self._first)
        untouched = min(start, self._first[0])  # the one loss that no step had spoilt
        if (losses - untouched > OVER_START * abs(untouched)).mean() >= MOSTLY:
            return Fall(level - untouched, True)
        if self._accepted < 2 * LASTING:
            return None
        progress, lost = start - self._best, level - self._best
        scatter = robust.spread(losses)
        if progress > 2 * scatter and lost > max(HALF * progress, scatter):
            return Fall(lost, False)
        return None

    def settle(self) -> None:
        """Take the level that the loss has risen to for the data's own: it is no fault."""
        self._best = robust.median([loss for loss, _ in self._recent])
        self._first = [self._best] * FIRST
        self._recent.clear()

    def _add_level(self, level: float) -> None:
        """Levels of the whole run, thinned by two whenever there are many."""
        self._since_level += 1
        if self._since_level % self._level_stride:
            return
        self._levels.append(level)
        if len(self._levels) == MOST_LEVELS:
            self._levels = self._levels[1::2]
            self._level_stride *= 2

    def was_lone(self, reading: Reading) -> None:
        """A spike came alone: the steps after it were sound without anything being undone."""
        if not (reading.loss_finite and reading.gradients_finite):
            return  # NaN and inf are no size of a spike
        if _log(reading.norm) < _log(self.usual_norm) + math.log(BROKEN):
            self._lone.append((reading.step, reading.loss, _log(reading.norm)))

    def forget(self) -> None:
        """Forget all earlier steps: later ones are not compared with them."""
        self.__init__(self._ladder)  # type: ignore[misc]

    def undone(self) -> None:
        """The steps just seen were rolled back."""
        self._recent.clear()

    def _habit(self, step: int) -> tuple[float, float]:
        """The largest loss and log norm of lone spikes, once they are a habit of this training."""
        if len(self._lone) < HABIT or step - self._lone[0][0] > HABIT_STEPS:
            return -math.inf, -math.inf
        return max(loss for _, loss, _ in self._lone), max(log for _, _, log in self._lone)

    def _new_limits(self) -> tuple[float, float]:
        losses = np.fromiter(self._losses, np.float64)
        logs = np.fromiter(self._logs, np.float64)
        of_loss = self._loss_limit(losses) if losses.size >= ENOUGH else math.inf
        of_norm = self._norm_limit(logs) if logs.size >= ENOUGH else math.inf
        return of_loss, of_norm

    def _youth(self, grown: int) -> float:
        """By how much more a value must stand out as long as so many steps were not taken.

        First rewards, or another player that begins to learn, lift losses and norms for good.
        """
        return max(1.0, grown / self._accepted) ** 2

    def _loss_limit(self, losses: robust.Floats) -> float:
        if self._ladder.rule == "olmo":
            return float(losses.mean() + self._ladder.sigma * losses.std(ddof=1))
        youth = self._youth(self._ladder.window)
        sigma = self._ladder.sigma * youth
        middle = robust.median(losses)
        undone = 0.5 * youth * max(abs(middle), robust.median(self._first) - middle)
        limit = max(middle + max(sigma * robust.spread(losses), undone), float(losses.max()))
        if losses.min() <= 0:
            return limit
        logs = np.log(losses)  # losses of one sign scatter by a factor: their far tail is no spike
        return max(
            limit, math.exp(min(robust.median(logs) + sigma * robust.spread(logs), MOST_LOG))
        )

    def _norm_limit(self, logs: robust.Floats) -> float:
        sigma = self._ladder.sigma
        if self._ladder.rule == "olmo":
            norms = np.exp(logs)
            return _log(float(norms.mean() + sigma * norms.std(ddof=1)))
        youth = self._youth(2 * ENOUGH)
        over = max(math.log(RATIO * youth), sigma * youth * robust.spread(logs))
        usual = float(np.quantile(self._levels, 0.9)) + math.log(3 * youth)
        return max(robust.median(logs) + over, usual, float(logs.max()))

    def _diverges(self) -> bool:
        """Whether loss and norm have lain far over where they began, for a while."""
        if len(self._recent) < LASTING or self._accepted < self._ladder.window // 2:
            return False
        if not self._levels:  # no gradient was ever over 0
            return False
        losses, logs = (np.array(column) for column in zip(*self._recent, strict=True))
        start = robust.median(self._first)
        lowest = min(self._levels[: max(1, len(self._levels) - LASTING // REFRESH)])
        above = losses - start > OVER_START * abs(start)
        return bool(above.all() and (logs - lowest > math.log(RATIO)).all())


def _log(norm: float) -> float:
    return math.log(norm) if norm > 0 else -math.inf
