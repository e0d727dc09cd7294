"""Warnings that point at the user's own line, however deep in hooks they arise."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import torch

from steadygrad.text import printable

_OURS = str(Path(__file__).parents[2])
_TORCHS = str(Path(torch.__file__).parent)


def warn_user(message: str, category: type[Warning]) -> None:
    """Warn as if the nearest caller outside steadygrad and torch had done so.

    Args:
        message: what happened, and what to type.
        category: of the warning.
    """
    level, frame = 1, sys._getframe(0)
    while frame.f_back is not None and frame.f_code.co_filename.startswith((_OURS, _TORCHS)):
        level, frame = level + 1, frame.f_back
    warnings.warn(printable(message), category, stacklevel=level)
