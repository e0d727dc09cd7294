"""What the samplers of the frameworks share: when to sample, and figures of a matrix in NumPy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from steadygrad.vocabulary import Sample

Floats = NDArray[np.float64]
Parts = NDArray[np.inexact]


"""Float64, or complex128 where a tensor is complex."""
Ids = NDArray[np.int64]


class SampleWriter(Protocol):
    """Where figures go: a `RunWriter`."""

    def write_sample(self, name: Sample, step: int, tensor_ids: Ids, values: Floats) -> None:
        """Record one figure a tensor."""


TAKEN = 4096
"""Elements of a tensor that stand for it where a copy is needed."""
LARGEST_EXACT = 128
"""Rows up to which a spectral radius is computed from all eigenvalues."""


def due(step: int, every: int = 64) -> bool:
    """Whether a step is sampled: often at first, every `every` steps, then a quarter so often.

    Args:
        step: its number, from 0.
        every: steps between samples, once the first ones are taken and until eight more are.

    Returns:
        Whether it is.

    Example:
        >>> [step for step in range(900) if due(step)]
        [0, 1, 2, 4, 8, 16, 32, 64, 128, 192, 256, 320, 384, 448, 512, 768]
    """
    early = step < every and step & (step - 1) == 0
    return early or step % _gap(step, every) == 0


def next_due(step: int, every: int = 64) -> int:
    """The first sampled step from this one on.

    Example:
        >>> next_due(1), next_due(5), next_due(64), next_due(65), next_due(513)
        (1, 8, 64, 128, 768)
    """
    gap = _gap(step, every)
    rounded = -(-step // gap) * gap
    return min(rounded, 1 << (step - 1).bit_length()) if 0 < step <= every else rounded


def _gap(step: int, every: int) -> int:
    return every if step <= 8 * every else 4 * every


def stride(elements: int) -> int:
    """Distance between the elements that stand for a tensor.

    Example:
        >>> stride(0), stride(4096), stride(4097)
        (1, 1, 2)
    """
    return max(1, -(-elements // TAKEN))


def spectral_radius(rows: NDArray[np.float64]) -> float:
    """Largest absolute eigenvalue; estimated for large matrices.

    Args:
        rows: a matrix, float64.

    Returns:
        The radius; NaN for what is not square or not finite.

    Example:
        >>> spectral_radius(np.diag([0.5, -2.0]))
        2.0
    """
    if rows.ndim != 2 or rows.shape[0] != rows.shape[1] or not np.isfinite(rows).all():
        return math.nan
    if len(rows) <= LARGEST_EXACT:
        return float(np.abs(np.linalg.eigvals(rows)).max())
    return _radius_by_powers(rows)


def _radius_by_powers(rows: NDArray[np.float64], powers: int = 64) -> float:
    """Mean growth of a vector over the later of many products: complex pairs average out."""
    vector = np.cos(np.arange(1, len(rows) + 1, dtype=np.float64))
    logs = 0.0
    for power in range(2 * powers):
        vector = rows @ vector
        size = float(np.linalg.norm(vector))
        if size == 0:
            return 0.0
        vector /= size
        logs += math.log(size) if power >= powers else 0.0
    return math.exp(logs / powers)


class WeightFigures:
    """Writes what is sampled of weights, from their norms and parts of them on the host.

    Parts of all tensors stand side by side in one array: some ten calls for any number of them.

    Args:
        writer: an open `RunWriter`, or anything with its `write_sample`.

    Example:
        >>> class Print:
        ...     def write_sample(self, name, step, ids, values):
        ...         print(name, step, values.tolist())
        >>> figures = WeightFigures(Print())
        >>> parts, starts = side_by_side([np.array([3.0, 4.0]), np.array([0.1, 0.1, 0.1])])
        >>> figures.write(0, np.array([0, 1]), np.array([5.0, 0.2]), parts, starts)
        weight_norm 0 [5.0, 0.2]
        weight_std 0 [0.5, 0.0]
        >>> figures.finish(parts * 0.5)
        update_ratio 0 [0.5, 0.5]
    """

    def __init__(self, writer: SampleWriter) -> None:
        self._writer = writer
        self._before: _Before | None = None

    @property
    def waits(self) -> bool:
        """Whether the weights after the sampled step are wanted."""
        return self._before is not None

    def after(self, step: int) -> bool:
        """Whether weights that enter this step finish a sample; forgets one that is too old."""
        if self._before is None or step <= self._before.step:
            return False
        if step != self._before.step + 1:  # several steps at once tell nothing
            self._before = None
        return self._before is not None

    def write(self, step: int, ids: Ids, norms: Floats, parts: Parts, starts: Ids) -> None:
        """Write norms and deviations of the weights that a step starts from.

        Args:
            step: its number.
            ids: the tensors' numbers in the run.
            norms: 2-norms of the tensors, whole.
            parts: some elements of each, side by side; kept, and overwritten in the end.
            starts: where each tensor's begin.
        """
        self._before = _Before(step, ids, parts, starts, "update_ratio")
        # NaN means "not measured" in the file: what is not finite is written as inf
        norms_or_inf = np.where(np.isnan(norms), np.inf, norms)
        self._writer.write_sample("weight_norm", step, ids, norms_or_inf)
        self._writer.write_sample("weight_std", step, ids, _deviations(parts, starts))

    def watch(self, step: int, ids: Ids, parts: Parts, starts: Ids) -> None:
        """Have only the update of an unusual step written, as ``unusual_update``.

        A figure of its own, so that medians over the scheduled samples stay what they are.
        """
        self._before = _Before(step, ids, parts, starts, "unusual_update")

    def finish(self, parts: Parts) -> None:
        """Write how far the sampled step has moved the weights; a skipped one tells nothing.

        Args:
            parts: the same elements as before it.
        """
        assert self._before is not None
        (step, ids, before, starts, name), self._before = self._before, None
        with np.errstate(all="ignore"):  # weights may be broken by now
            moved, size = _norms(parts - before, starts), _norms(before, starts)
            ratios = np.where(size > 0, moved / size, np.nan)
        if (ratios > 0).any():  # all zero: the step was skipped
            self._writer.write_sample(name, step, ids, ratios)


class _Before(NamedTuple):
    """A sampled step whose update is still to come."""

    step: int
    ids: Ids
    parts: Parts
    starts: Ids
    name: Sample


class UnusualSteps:
    """Says after which steps a training leaves its range, so that more of it is sampled.

    The log of the norm and the loss are held beside running means of themselves. The steps asked
    for are few: `BURST` after one that is unusual, `SPARE` in all and one in `SHARE` of a long run.

    Attributes:
        bounds: a step is usual with a norm below the first, a loss up to the second, and a number
            from the third on; as many as the fourth says are looked into together.
        waiting: usual steps that are not looked into yet.

    Example:
        >>> watch = UnusualSteps()
        >>> [step for step in range(40) if watch.after(step, 9.0 if step == 30 else 1.0, 2.0)]
        [30, 31, 32, 33, 34, 35, 36, 37]
    """

    def __init__(self) -> None:
        self._norm, self._loss = _Range(math.log(UNUSUAL), 0.0), _Range(0.0, 0.5)
        self.waiting: list[tuple[int, float, float]] = []
        self.bounds = (math.inf, math.inf, 0, FIRST)
        self._until = 0
        self._asked = 0

    def after(self, step: int, norm: float, loss: float) -> bool:
        """Whether the step after this one is to be sampled.

        Args:
            step: number of a finished step.
            norm: its gradient norm.
            loss: its loss; NaN where unknown.
        """
        # done at every step: usual ones are looked into together, while the code is at hand
        waiting = self.waiting
        waiting.append((step, norm, loss))
        highest_norm, highest_loss, until, together = self.bounds
        usual = norm < highest_norm and not loss > highest_loss
        if usual and step >= until and len(waiting) < together:
            return False
        self._look_into(waiting)
        wanted = step < self._until and self._asked < SPARE + step // SHARE
        self._asked += wanted
        return wanted

    def _look_into(self, waiting: list[tuple[int, float, float]]) -> None:
        for step, norm, loss in waiting:
            high = norm > 0 and self._norm.left(math.log(norm))
            if self._loss.left(loss) or high:
                self._until = step + BURST
        waiting.clear()
        highest_norm = math.exp(min(self._norm.highest, 700.0))
        together = TOGETHER if self._norm.is_known else FIRST
        self.bounds = (highest_norm, self._loss.highest, self._until, together)


FIRST, TOGETHER = 8, 32
"""Steps that are looked into together, as long as they stay in the range of those before."""
BURST, SPARE, SHARE = 8, 32, 64
MANY = 20
"""Steps over which a running level is taken."""
UNUSUAL = 3.0
"""Times its running level from which a norm is unusual, if it is beyond its spread too."""


class _Range:
    """A running mean and spread, which what leaves them moves no further than their edge.

    Args:
        least: by which a value leaves the range.
        share: of the mean by which it leaves it, at least.
    """

    def __init__(self, least: float, share: float) -> None:
        self._least, self._share = least, share
        self._count = 0
        self._mean = self._spread = 0.0

    @property
    def is_known(self) -> bool:
        """Whether the range rests on as many values as it ever does."""
        return self._count >= MANY

    @property
    def highest(self) -> float:
        """The largest value in the range; inf before the range is known."""
        if self._count < 8:
            return math.inf
        return self._mean + max(5 * self._spread, self._least, abs(self._share * self._mean))

    def left(self, value: float) -> bool:
        """Whether a value is over the range; takes it in."""
        if not math.isfinite(value):
            return False
        self._count += self._count < MANY
        away, weight = value - self._mean, 1 / self._count
        beyond = self._count > 8 and value > self.highest
        if beyond:
            away = self.highest - self._mean
        self._mean += weight * away
        self._spread += weight * (abs(away) - self._spread)
        return beyond


def side_by_side(parts: Sequence[NDArray[np.generic]]) -> tuple[Parts, Ids]:
    """Vectors in one array, and where each begins; an empty one gives NaN.

    Example:
        >>> side_by_side([np.array([1.0, 2.0]), np.array([])])
        (array([ 1.,  2., nan]), array([0, 2]))
    """
    filled = [part if part.size else np.array([np.nan]) for part in parts]
    starts = np.cumsum([0, *(part.size for part in filled)])[:-1]
    wide = np.result_type(np.float64, *filled)
    return np.concatenate(filled, dtype=wide) if filled else np.zeros(0), starts


def _deviations(parts: Parts, starts: Ids) -> Floats:
    counts = np.diff(starts, append=len(parts))
    with np.errstate(all="ignore"):
        # from the first of each: 0 where all are equal, and never far off for the spread
        shifted = np.repeat(parts[starts], counts)
        np.subtract(parts, shifted, out=shifted)
        means = np.add.reduceat(shifted, starts) / counts
        sizes = _norms(shifted, starts)
        deviations: Floats = np.sqrt(np.maximum(sizes * sizes / counts - np.abs(means) ** 2, 0.0))
    return deviations


def _norms(parts: Parts, starts: Ids) -> Floats:
    """2-norms; the parts are overwritten: memory that is new costs more than the arithmetic."""
    squares = parts.real**2 + parts.imag**2 if np.iscomplexobj(parts) else parts
    if squares is parts:
        np.multiply(parts, parts, out=parts)
    norms: Floats = np.sqrt(np.add.reduceat(squares, starts))
    return norms
