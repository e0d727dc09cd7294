"""Carry the observation along into processes that the script starts.

Forked processes inherit it. Spawned ones (``mp.spawn``, forkserver) start a bare
interpreter and are told what to do by pickled "preparation data": one entry is
added to it, whose unpickling installs the observation before the child imports
the script. The entry is a builtin call on a string, so that a child that cannot
import steadygrad goes on without it. Programs started by `subprocess` are not
followed.
"""

from __future__ import annotations

import sys
from dataclasses import asdict, replace
from types import ModuleType
from typing import Any

from steadygrad.launch.plan import Plan

_INSTALL = """
try:
    from steadygrad.launch.session import adopt
except ImportError:
    pass
else:
    adopt(**plan)
"""


class Carrier:
    """Pickles as the call that installs the observation where it is unpickled."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan

    def __reduce__(self) -> tuple[Any, ...]:
        return exec, (_INSTALL, {"plan": asdict(self.plan)})


def child_of(plan: Plan, name: str) -> Plan:
    """The plan of a process that the script started: same wishes, a file of its own, silent.

    Example:
        >>> child_of(Plan("train.py", out="/tmp/run.db"), "SpawnProcess-1").process
        'SpawnProcess-1'
    """
    safe = "".join(c if c.isalnum() or c in "._-" else "_" for c in name)
    inside = f"{plan.process}.{safe}" if plan.process else safe
    return replace(plan, process=inside, speaks=False)


def carry_into_spawned(spawn: ModuleType, plan: Plan) -> None:
    """Make `multiprocessing.spawn` hand the plan to the processes that it starts.

    Args:
        spawn: the module ``multiprocessing.spawn``.
        plan: the plan of this process.
    """
    original = spawn.get_preparation_data

    def get_preparation_data(name: str) -> dict[str, object]:
        data: dict[str, Any] = original(name)
        data["steadygrad"] = Carrier(child_of(plan, name))
        return data

    spawn.get_preparation_data = get_preparation_data  # type: ignore[attr-defined]


def name_of_this_process() -> str:
    """The multiprocessing name of a forked child, or its process id."""
    import os

    process = sys.modules.get("multiprocessing.process")
    name: str = process.current_process().name if process is not None else "MainProcess"
    return name if name != "MainProcess" else f"pid{os.getpid()}"
