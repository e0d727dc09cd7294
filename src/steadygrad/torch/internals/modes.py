"""Keeping our own operations from the modes of a script.

A mode sees every operation of its thread: one that counts them would count ours, and one that
draws random numbers (for noise, for faults) would draw others than without us.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch
from torch.utils import _python_dispatch as dispatch
from torch.utils._device import DeviceContext

from steadygrad.invisible import invisible
from steadygrad.torch.internals.private import mode_at, modes, pop_mode, push_mode

Function = TypeVar("Function", bound=Callable[..., Any])
Taken = tuple[list[Any], list[Any]]

_dispatch_modes: Callable[[], int] = torch._C._len_torch_dispatch_stack


def are_on() -> bool:
    """Whether a mode of this thread would see what is done now; the default device's is none.

    Example:
        >>> are_on()
        False
    """
    depth = modes()
    return bool(_dispatch_modes() or depth > 1 or (depth and not _of_device()))


def _of_device() -> bool:
    return type(mode_at(0)) is DeviceContext


def take_off() -> Taken:
    """Take the script's modes off; those of torch's own tracing stay, and all below them."""
    functions = [pop_mode() for _ in range(modes() - (modes() > 0 and _of_device()))]
    dispatched: list[Any] = []
    while _dispatch_modes():
        top: Any = dispatch._get_current_dispatch_mode()
        if top is None or getattr(top, "is_infra_mode", _no)():
            break
        dispatched.append(dispatch._pop_mode())
    return functions, dispatched


def _no() -> bool:
    return False


def put_back(taken: Taken) -> None:
    """Put up again what `take_off` has taken."""
    functions, dispatched = taken
    for mode in reversed(dispatched):
        dispatch._push_mode(mode)
    for mode in reversed(functions):
        push_mode(mode)


def unseen(function: Function) -> Function:
    """A function that no mode of the script sees into.

    Args:
        function: any function or method.

    Example:
        >>> unseen(abs)(-2)
        2
    """

    @functools.wraps(function)
    @invisible
    def call(*args: object, **kwargs: object) -> Any:
        if not are_on():
            return function(*args, **kwargs)
        taken = take_off()
        try:
            return function(*args, **kwargs)
        finally:
            put_back(taken)

    return cast("Function", call)
