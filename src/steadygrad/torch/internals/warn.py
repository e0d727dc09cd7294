"""Warnings: ours point at the user's own line, and what our own work stirs up is not shown."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import torch

from steadygrad.runlog import notice

_TORCHS = str(Path(torch.__file__).parent)


def warn_user(message: str, category: type[Warning]) -> None:
    """Warn as if the nearest caller outside steadygrad and torch had done so.

    Args:
        message: what happened, and what to type.
        category: of the warning.
    """
    notice.warn_user(message, category, (_TORCHS,))


@contextlib.contextmanager
def without_warnings() -> Iterator[None]:
    """Show no warning meanwhile.

    After `warnings.catch_warnings` Python forgets which warnings it has shown, and those of the
    script that are due once would come again.
    """
    everything = ("ignore", None, Warning, None, 0)
    cast("list[object]", warnings.filters).insert(0, everything)
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):  # where what ran in between has put others there
            cast("list[object]", warnings.filters).remove(everything)
