"""What the trainers' files share: where a resumed run is recorded, and the figures they log."""

from __future__ import annotations

import os
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING

from steadygrad.runlog.records import StepRecord

if TYPE_CHECKING:
    from steadygrad.stats import GradientStats

WINDOW = 100
"""Steps over which the logged clip rate is counted."""


def run_path(path: str | os.PathLike[str], resumed_at: int) -> Path:
    """The run file to write: a resumed training never overwrites its first part.

    Args:
        path: the file asked for.
        resumed_at: step at which the training resumes; 0 for a new one.

    Returns:
        ``path`` itself, or with ``-from<step>`` in its stem where the training is resumed.

    Example:
        >>> run_path("run.db", 0).name, run_path("run.db", 200).name
        ('run.db', 'run-from200.db')
    """
    path = Path(path)
    return path.with_stem(f"{path.stem}-from{resumed_at}") if resumed_at else path


class ClipRate:
    """Share of the last `WINDOW` steps on which gradients were clipped.

    Example:
        >>> rate = ClipRate()
        >>> rate.add(StepRecord(0, action="clip")), rate.add(StepRecord(1, action="none"))
        (1.0, 0.5)
    """

    def __init__(self) -> None:
        self._clipped: deque[bool] = deque(maxlen=WINDOW)

    def add(self, record: StepRecord) -> float:
        """Count a step and return the rate."""
        self._clipped.append(record.action == "clip")
        return sum(self._clipped) / len(self._clipped)


def figures(
    record: StepRecord, rate: float, stats: GradientStats | None, tensors: bool
) -> dict[str, float]:
    """A step as the scalars that a trainer logs, named as everywhere in steadygrad.

    Args:
        record: the step.
        rate: clip rate, 0 to 1.
        stats: its `GradientStats`, or None.
        tensors: also one norm a tensor.

    Returns:
        ``grad_norm/total``, ``clip/norm`` (after clipping), ``clip/coef``, ``clip/rate``,
        ``grad_norm/<tensor>``...; non-finite values are kept.
    """
    logged = {
        "grad_norm/total": record.norm,
        "clip/norm": record.applied_norm,
        "clip/threshold": record.threshold,
        "clip/coef": record.coef,
        "clip/rate": rate,
        "clip/skipped": float(record.action == "skip"),
    }
    if tensors and stats is not None:
        logged.update(
            (f"grad_norm/{name}", float(norm))
            for name, norm in zip(stats.names, stats.norms, strict=True)
        )
    return logged
