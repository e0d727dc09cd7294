"""Keeping our own Python out of `torch.compile`'s graphs.

What is done here reads pointers, clocks and NumPy figures, which a tracer would turn
into constants of the graph. torch has a decorator for that, but using it imports the
compiler, which takes seconds, and its wrapper costs every call some microseconds; it is called
only where something traces or may begin to.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch

from steadygrad.invisible import invisible

Function = TypeVar("Function", bound=Callable[..., Any])

_NO_TRACER = object()
# what torch asks before it runs a frame; None where nothing is compiled. torch 2.4 lacks it
_tracer: Callable[[], object] = getattr(
    getattr(torch._C._dynamo, "eval_frame", None),
    "get_eval_frame_callback",
    lambda: _NO_TRACER if "torch._dynamo" in sys.modules else None,
)


def eager(function: Function) -> Function:
    """A function that is called, never traced.

    Args:
        function: any function or bound method.

    Example:
        >>> eager(abs)(-2)
        2
    """
    disabled: list[Callable[..., object]] = []

    @functools.wraps(function)
    @invisible  # else the tracer would look into this one
    def call(*args: object, **kwargs: object) -> Any:
        if not torch.compiler.is_dynamo_compiling() and _tracer() is None:
            return function(*args, **kwargs)
        if not disabled:
            disabled.append(torch.compiler.disable(function))  # type: ignore[no-untyped-call]
        return disabled[0](*args, **kwargs)

    return cast("Function", call)
