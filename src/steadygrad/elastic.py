"""What torchrun tells the processes that it starts again after one of their job has failed."""

from __future__ import annotations

import os


def restarts() -> int:
    """How often this process's job was started again; 0 for a first start, or without torchrun.

    Example:
        >>> restarts()
        0
    """
    count = os.environ.get("TORCHELASTIC_RESTART_COUNT", "")
    return int(count) if count.isdigit() else 0
