"""A script that is started again is handed the folders of the snapshots of an earlier run.

They travel in the environment, by the number of the optimizer within the run, until
`Steady.restore` takes them: what is left when the script is over was not asked for.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping

from steadygrad.recovery.events import EventLike
from steadygrad.vocabulary import LADDER

RESUME = "STEADYGRAD_RESUME"
"""Environment variable: number of an optimizer -> folder, as JSON."""


def folders_of(events: Iterable[EventLike]) -> dict[int, str]:
    """Where a run wrote its snapshots, by the number of the optimizer.

    Args:
        events: ``run.events``.

    Example:
        >>> folders_of([])
        {}
    """
    folders: dict[int, str] = {}
    for event in events:
        folder, optimizer = event.data.get("folder"), event.data.get("optimizer", 0)
        if event.kind == LADDER and isinstance(folder, str) and isinstance(optimizer, int):
            folders[optimizer] = folder
    return {optimizer: folder for optimizer, folder in folders.items() if folder}


def offer(folders: Mapping[int, str]) -> None:
    """Hand folders to this process and those that it starts.

    Example:
        >>> offer({0: "/tmp/snapshots"})
        >>> take(1), take(0), take(0), not_taken()
        (None, '/tmp/snapshots', None, [])
    """
    if folders:
        os.environ[RESUME] = json.dumps(folders)
    else:
        os.environ.pop(RESUME, None)


def take(optimizer: int) -> str | None:
    """The folder that was handed over for an optimizer, once; None where there is none."""
    folders = _offered()
    folder = folders.pop(optimizer, None)
    if folder is not None:
        offer(folders)
    return folder


def not_taken() -> list[int]:
    """Numbers of the optimizers whose folders nobody took."""
    return sorted(_offered())


def _offered() -> dict[int, str]:
    try:
        return {int(k): str(v) for k, v in json.loads(os.environ.get(RESUME, "{}")).items()}
    except (ValueError, AttributeError):
        return {}
