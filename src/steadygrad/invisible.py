"""Wrappers that stand between a script and its framework without being seen."""

from __future__ import annotations

from collections.abc import Callable
from types import FunctionType
from typing import Any, TypeVar, cast

# `warnings` leaves frames with these two words in their file name out of its stack level
# (it takes them for the importer's), and torch.compile does not trace them
INVISIBLE = "<frozen importlib._bootstrap> steadygrad"

Function = TypeVar("Function", bound=Callable[..., Any])


def invisible(function: Function) -> Function:
    """Have warnings name the caller's line, not one of this function.

    Args:
        function: a plain function; changed in place.

    Returns:
        The function.

    Example:
        >>> invisible(lambda: 1).__code__.co_filename
        '<frozen importlib._bootstrap> steadygrad'
    """
    plain = cast("FunctionType", function)
    plain.__code__ = plain.__code__.replace(co_filename=INVISIBLE)
    return function


def leave_no_frame(error: BaseException) -> None:
    """Take the function that catches ``error`` off its traceback; a bare ``raise`` must follow.

    Python 3.10 keeps the frame.

    Args:
        error: what a function called by the catching one has raised.
    """
    trace = error.__traceback__
    error.__traceback__ = None if trace is None else trace.tb_next
