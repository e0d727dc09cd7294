"""The run file of an observed process: where it is, and what it says at first.

Loaded when the first step is recorded, which is not before the script's first line.
"""

from __future__ import annotations

import os
from typing import Any

from steadygrad.elastic import job
from steadygrad.launch.job import facts_of_job
from steadygrad.launch.plan import Plan, rank_of, same_default
from steadygrad.paths import next_free, with_suffix
from steadygrad.runlog import RunWriter
from steadygrad.runlog.continuing import file_of_job


def open_run_file(plan: Plan, rank: int | None, facts: dict[str, object]) -> tuple[str, RunWriter]:
    """Open the run file that a plan names.

    Args:
        plan: what was asked for.
        rank: of this process in the job that it trains in; None for none.
        facts: what the file says at first.

    Returns:
        The path as it was named, and the writer.

    Raises:
        RunFileError: there is another file at that path.
        OSError: nothing can be written there.
    """
    wanted = plan.out
    started_as = rank_of(os.environ)
    if plan.process:
        wanted = with_suffix(wanted, plan.process)
    elif rank is None and started_as:  # ranks that do not train together
        wanted = with_suffix(wanted, f"rank{started_as}")
    earlier = file_of_job([wanted, *same_default(wanted)]) if job() else ""
    path = earlier or (wanted if plan.force else next_free(wanted))
    writer = RunWriter(
        path,
        info=facts,
        force=plan.force and not earlier,
        record_arguments=plan.record_arguments,
        goes_on=bool(earlier),
    )
    return path, writer


def first_facts(plan: Plan, began: float) -> dict[str, object]:
    """What is known of a run before its first step.

    Args:
        plan: what was asked for.
        began: when the process began, in seconds since the epoch.
    """
    facts: dict[str, Any] = {
        "command": plan.command,
        "script": plan.target,
        "observed_by": "run",
        "started": began,
        "policy": plan.clip or "none",
    }
    if plan.on_nonfinite:
        facts["on_nonfinite"] = plan.on_nonfinite
    if plan.process:
        facts["process"] = plan.process
    rank = rank_of(os.environ)
    if rank is not None:
        facts["rank"] = rank
    return {**facts, **facts_of_job()}
