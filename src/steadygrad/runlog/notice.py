"""Warnings that cannot stop a training, not even where warnings are errors."""

from __future__ import annotations

import sys
import warnings

from steadygrad.errors import RecordingWarning
from steadygrad.text import printable


def warn(message: str, category: type[Warning] = RecordingWarning) -> None:
    """Give a warning, on standard error where the user made warnings errors.

    Args:
        message: what stopped, why, and what to type.
        category: of the warning.
    """
    message = printable(message)  # paths, and what a server answered
    try:
        warnings.warn(message, category, stacklevel=5)
    except category:
        print(f"steadygrad: {message}", file=sys.stderr)
