"""The rows of a run that a calibration or a replay reads: one optimizer's, without undone steps."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from steadygrad.errors import SpecError, UsageError
from steadygrad.policies import parse
from steadygrad.recovery.events import events_of
from steadygrad.recovery.undone import undone
from steadygrad.runlog.encode import Rows

if TYPE_CHECKING:
    from steadygrad.runlog import Run


def open_steps(
    run: Run | str | os.PathLike[str], optimizer: int | None
) -> tuple[Run, int, Rows, NDArray[np.intp]]:
    """The run, the optimizer's number, its steps, and their places among all steps.

    Steps that a rollback took back are left out.

    Args:
        run: a run, or the path of a run file.
        optimizer: number of the optimizer; None for the one with the most steps.

    Raises:
        UsageError: the run has no such optimizer.
    """
    if isinstance(run, (str, os.PathLike)):
        from steadygrad.runlog import open_run

        run = open_run(run)
    steps: Rows = np.asarray(run.steps)
    numbers, counts = np.unique(steps["optimizer"], return_counts=True)
    if optimizer is None:
        optimizer = int(numbers[np.argmax(counts)]) if numbers.size else 0
    elif optimizer not in numbers:
        raise UsageError(f"the run has no optimizer {optimizer}; it has {numbers.tolist()}")
    where = np.flatnonzero(steps["optimizer"] == optimizer)
    acts = [act for act in events_of(run.events) if act.optimizer == optimizer]
    where = where[~undone(steps["step"][where], acts)]
    return run, optimizer, steps[where], where


def recorded_norm_type(run: Run) -> float:
    """The p of the recorded norms: that of the policy which asked for them."""
    try:
        return parse(str(run.info.get("policy", "none"))).norm_type
    except SpecError:  # groups, or a policy of the user's own
        return 2.0
