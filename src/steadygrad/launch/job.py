"""What the processes of one job tell each other, and what the run file says of the job."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

from steadygrad.elastic import restarts
from steadygrad.processes import place_in_job


def facts_of_job() -> dict[str, Any]:
    """What the run file says of the job: its number of ranks, and which restart it is."""
    facts: dict[str, Any] = {}
    place = place_in_job()
    if place is not None:
        facts["ranks"] = place.ranks
    if restarts():
        facts["restart"] = restarts()
    return facts


def tell_end(how: str | int) -> None:
    """On a rank that does not write: tell rank 0 how the script ended here."""
    if _initialized() is not None:
        from steadygrad.torch.distributed.board import job_board

        board = job_board()
        if board is not None:
            board.post("end", {"exit": how}, None)


def ends_told() -> list[str]:
    """On rank 0: how the script ended on other ranks, as ``rank 1: ValueError``."""
    if _initialized() is None:
        return []
    from steadygrad.torch.distributed.board import job_board

    board = job_board()
    ends = [] if board is None else [data for kind, data, _ in board.posts() if kind == "end"]
    return [f"rank {end['rank']}: {end['exit']}" for end in ends]


def _initialized() -> ModuleType | None:
    """torch.distributed where a process group is up; never imports it."""
    module = sys.modules.get("torch.distributed")
    if module is None or not module.is_available() or not module.is_initialized():
        return None
    return module
