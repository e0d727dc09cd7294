"""What torchrun tells the processes that it starts again after one of their job has failed."""

from __future__ import annotations

import os
from pathlib import Path


def restarts() -> int:
    """How often this process's job was started again; 0 for a first start, or without torchrun.

    Example:
        >>> restarts()
        0
    """
    count = os.environ.get("TORCHELASTIC_RESTART_COUNT", "")
    return int(count) if count.isdigit() else 0


def job() -> str:
    """What all starts of this process's job have in common; empty without torchrun.

    The agent that starts them lives on while they are started again, also where ranks join or
    leave, which torchrun does not count as a restart.

    Example:
        >>> job()
        ''
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return ""
    agent = os.getppid()
    try:  # a process's number is used again
        began = Path(f"/proc/{agent}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        began = ""
    return f"{os.environ['TORCHELASTIC_RUN_ID']} {agent} {began}".strip()
