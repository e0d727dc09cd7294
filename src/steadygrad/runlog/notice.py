"""Warnings that cannot stop a training, not even where warnings are errors."""

from __future__ import annotations

import sys
import warnings

from steadygrad.errors import RecordingWarning
from steadygrad.text import printable


def warn(message: str) -> None:
    """Give a `RecordingWarning`, on standard error where the user made warnings errors.

    Args:
        message: what stopped, why, and what to type.
    """
    message = printable(message)  # paths, and what a server answered
    try:
        warnings.warn(message, RecordingWarning, stacklevel=5)
    except RecordingWarning:
        print(f"steadygrad: {message}", file=sys.stderr)
