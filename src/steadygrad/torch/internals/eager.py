"""Keeping our own Python out of `torch.compile`'s graphs, and from the script's modes.

What is done here reads pointers, clocks and NumPy figures, which a tracer would turn
into constants of the graph. torch has a decorator for that, but using it imports the
compiler, which takes seconds, and its wrapper costs every call some microseconds; it is called
only where something traces or may begin to.
"""

from __future__ import annotations

import functools
import re
import sys
from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch

from steadygrad.invisible import invisible
from steadygrad.kernels import native
from steadygrad.torch.internals.inlay import Visit
from steadygrad.torch.internals.modes import are_on, dispatch_modes, unseen
from steadygrad.torch.internals.private import modes

Function = TypeVar("Function", bound=Callable[..., Any])

_NO_TRACER = object()


def owns_what_it_returns(ask: Callable[[], object]) -> bool:
    """Whether torch hands out its tracer, or None, with a reference of the caller's own.

    Torch 2.6 does not: each time it is asked, one reference is lost, until None itself is freed and
    the process ends.

    Args:
        ask: `get_eval_frame_callback`, where nothing is compiled.
    """
    if sys.version_info >= (3, 12):  # None is never freed there, so its count tells nothing
        release = re.match(r"(\d+)\.(\d+)", torch.__version__)
        return release is not None and tuple(map(int, release.groups())) >= (2, 9)
    before = sys.getrefcount(None)
    for _ in range(64):
        ask()
    return sys.getrefcount(None) > before - 32


def _loaded() -> object:
    return _NO_TRACER if "torch._dynamo" in sys.modules else None


# what torch asks before it runs a frame; None where nothing is compiled. torch 2.4 lacks it
_tracer: Callable[[], object] = getattr(
    getattr(torch._C._dynamo, "eval_frame", None), "get_eval_frame_callback", _loaded
)
if not owns_what_it_returns(_tracer):
    _tracer = _loaded


_WATCHERS = (_tracer, modes, dispatch_modes)
"""What would see into a call: a tracer, or modes, of which there are none mostly."""
_VISITS = (Visit,) if native.USUAL_CLIP is None else (Visit, native.USUAL_CLIP)


class _UnseenVisit(Visit):
    """A visit that no mode sees into."""

    def __init__(self, visit: Visit) -> None:
        super().__init__(visit.arguments)
        self.replaced, self.result = visit.replaced, visit.result
        self.returns = unseen(visit.returns)  # type: ignore[method-assign]
        self.ends = unseen(visit.ends)  # type: ignore[method-assign]


def eager(function: Function) -> Function:
    """A function that is called, never traced, and into which no mode of the script sees.

    Args:
        function: any function or bound method.

    Returns:
        What calls it; a `native.GATE` where that was built.

    Example:
        >>> eager(abs)(-2)
        2
    """
    disabled: list[Callable[..., object]] = []

    def hidden(*args: object, **kwargs: object) -> Any:
        answer = unseen(function)(*args, **kwargs)
        return _UnseenVisit(answer) if isinstance(answer, _VISITS) and are_on() else answer

    @invisible  # else the tracer would look into this one
    def watched(*args: object, **kwargs: object) -> Any:
        if not torch.compiler.is_dynamo_compiling() and _tracer() is None:
            return hidden(*args, **kwargs) if are_on() else function(*args, **kwargs)
        if not disabled:
            disabled.append(torch.compiler.disable(hidden))  # type: ignore[no-untyped-call]
        return disabled[0](*args, **kwargs)

    @functools.wraps(function)
    @invisible
    def call(*args: object, **kwargs: object) -> Any:
        if not torch.compiler.is_dynamo_compiling() and _tracer() is None and not are_on():
            return function(*args, **kwargs)
        return watched(*args, **kwargs)

    gate = call if native.GATE is None else native.GATE(function, watched, _WATCHERS)
    return cast("Function", gate)
