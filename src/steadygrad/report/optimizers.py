"""A run's optimizers one by one: what is said of one is never added up with another's."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from steadygrad.runlog import Run


def rows_of_each(run: Run) -> dict[int, object]:
    """The step rows of each optimizer, by its number.

    Args:
        run: the run.

    Returns:
        Numbers, ascending, to rows in the order of the steps.

    Example:
        >>> import numpy as np
        >>> from steadygrad.runlog import Run
        >>> run = Run.from_arrays(steps={"norm": np.ones(3), "optimizer": np.array([0, 1, 0])})
        >>> {number: len(rows) for number, rows in rows_of_each(run).items()}
        {0: 2, 1: 1}
    """
    return {number: run.steps[part.rows] for number, part in run.parts.items()}


def name_of(run: Run, number: int) -> str:
    """What to call an optimizer: its class, where the run tells it, and its number."""
    described = run.info.get("optimizers") or []
    described_so = [o for o in described if isinstance(o, dict) and o.get("index") == number]
    kind = str(described_so[0].get("class", "")) if described_so else ""
    return f"{kind} {number}" if kind else f"optimizer {number}"
