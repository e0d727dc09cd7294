"""Keeping our own Python out of `torch.compile`'s graphs.

What is done here reads pointers, clocks and NumPy figures, which a tracer would turn
into constants of the graph. torch has a decorator for that, but using it imports the
compiler, which takes seconds; here that is put off until something else has imported it.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch

Function = TypeVar("Function", bound=Callable[..., Any])


def eager(function: Function) -> Function:
    """A function that is called, never traced.

    Args:
        function: any function or bound method.

    Example:
        >>> eager(abs)(-2)
        2
    """
    disabled: list[Callable[..., Any]] = []

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        if "torch._dynamo" not in sys.modules:  # then nothing can be tracing
            return function(*args, **kwargs)
        if not disabled:
            disabled.append(torch.compiler.disable(function))  # type: ignore[no-untyped-call]
        return disabled[0](*args, **kwargs)

    return cast("Function", call)
