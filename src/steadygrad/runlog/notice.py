"""Warnings: some point at the user's own line, and some cannot stop a training.

The latter not even where warnings are errors.
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

from steadygrad.errors import NoGradientsWarning, RecordingWarning
from steadygrad.text import printable

_OURS = str(Path(__file__).parents[1])


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


def warn_user(message: str, category: type[Warning], libraries: tuple[str, ...] = ()) -> None:
    """Warn as if the nearest caller outside steadygrad had done so.

    Args:
        message: what happened, and what to type.
        category: of the warning.
        libraries: folders of others whose lines are not the user's either.
    """
    level, frame = 1, sys._getframe(0)
    while frame.f_back is not None and frame.f_code.co_filename.startswith((_OURS, *libraries)):
        level, frame = level + 1, frame.f_back
    warnings.warn(printable(message), category, stacklevel=level)


def warn_of_nothing(caller: str, done: str, received: str, instead: str) -> None:
    """Warn that a function was given no gradients at all.

    Args:
        caller: the function.
        done: what it would have done, as in ``clipped``.
        received: what it was given.
        instead: what to pass.
    """
    warn_user(
        f"{caller} was given {received}: nothing was {done}. Pass {instead}", NoGradientsWarning
    )
