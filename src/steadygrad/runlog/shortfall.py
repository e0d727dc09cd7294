"""Steps that were taken and are not on record: how the file says so, and in what words.

A disk that is slow costs stretches of steps, each an event; one that is full, or gone, ends the
recording, which is a fact about the run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from steadygrad.vocabulary import GAP

STOPPED = "recording_stopped"
LONGEST_REASON = 200


class _Event(Protocol):
    @property
    def kind(self) -> str: ...

    @property
    def data(self) -> Mapping[str, Any]: ...


def shortfall(info: Mapping[str, Any], events: Sequence[_Event]) -> str:
    """Say which part of a run is on record, where that is not all of it.

    Args:
        info: facts about the run.
        events: what happened in it.

    Returns:
        A sentence or two; empty where nothing is missing.

    Example:
        >>> shortfall({STOPPED: {"recorded": 750, "steps": 3000, "reason": "disk is full"}}, [])
        'On record are 750 of at least 3,000 steps: recording stopped, disk is full.'
        >>> shortfall({}, [])
        ''
    """
    sentences = []
    stopped = info.get(STOPPED)
    if stopped is not None:
        recorded, steps = stopped["recorded"], max(stopped["steps"], stopped["recorded"])
        reason = stopped["reason"][:LONGEST_REASON].rstrip(".")
        sentences.append(
            f"On record are {recorded:,} of at least {steps:,} steps: recording stopped, {reason}."
        )
    missed = sum(event.data.get("steps", 0) for event in events if event.kind == GAP)
    if missed > 0:
        sentences.append(f"{missed:,} steps are not on record: the disk was too slow for them.")
    return " ".join(sentences)
