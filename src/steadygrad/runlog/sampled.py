"""What the samplers of the frameworks share: when to sample, and figures of a matrix in NumPy."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from steadygrad.runlog.writer import RunWriter

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
        >>> stride(4096), stride(4097)
        (1, 2)
    """
    return -(-elements // TAKEN)


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

    Args:
        writer: an open run.
        ids: the tensors' numbers in it.
    """

    def __init__(self, writer: RunWriter, ids: NDArray[np.int64]) -> None:
        self._writer, self._ids = writer, ids
        self._before: tuple[int, list[NDArray[np.float64]]] | None = None

    @property
    def waits(self) -> bool:
        """Whether the weights after the sampled step are wanted."""
        return self._before is not None

    def after(self, step: int) -> bool:
        """Whether weights that enter this step finish a sample; forgets one that is too old."""
        if self._before is None or step <= self._before[0]:
            return False
        if step != self._before[0] + 1:  # several steps at once tell nothing
            self._before = None
        return self._before is not None

    def write(self, step: int, norms: NDArray[np.float64], parts: list[Any]) -> None:
        """Write norms and deviations of the weights that a step starts from.

        Args:
            step: its number.
            norms: 2-norms of the tensors.
            parts: at most `TAKEN` elements of each, copied.
        """
        self._before = (step, parts)
        # NaN means "not measured" in the file: what is not finite is written as inf
        self._writer.write_sample("weight_norm", step, self._ids, _no_nan(norms))
        with np.errstate(all="ignore"):
            deviations = np.array([p.std() if p.size else math.nan for p in parts])
        self._writer.write_sample("weight_std", step, self._ids, deviations)

    def finish(self, parts: list[Any]) -> None:
        """Write how far the sampled step has moved the weights; a skipped one tells nothing.

        Args:
            parts: the same elements as before it.
        """
        assert self._before is not None
        (sampled, before), self._before = self._before, None
        with np.errstate(all="ignore"):
            moved = [np.linalg.norm(a - b) for a, b in zip(parts, before, strict=True)]
            size = [np.linalg.norm(b) for b in before]
        ratios = [m / s if s > 0 else math.nan for m, s in zip(moved, size, strict=True)]
        if any(r > 0 for r in ratios):
            self._writer.write_sample("update_ratio", sampled, self._ids, np.array(ratios))


def _no_nan(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.where(np.isnan(values), np.inf, values)
