"""Keeping our own operations from the modes of a script.

A mode sees every operation of its thread: one that counts them would count ours, and one that
draws random numbers (for noise, for faults) would draw others than without us.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch
from torch.utils import _python_dispatch as dispatch
from torch.utils._device import DeviceContext

from steadygrad.invisible import invisible
from steadygrad.torch.internals.private import mode_at, modes, pop_mode, push_mode

Function = TypeVar("Function", bound=Callable[..., Any])
Taken = tuple[list[Any], list[Any]]

dispatch_modes: Callable[[], int] = torch._C._len_torch_dispatch_stack
"""How many dispatch modes this thread has on its stack."""


class _Hidden(threading.local):
    """How many function modes of this thread are off just now."""

    modes = 0


_hidden = _Hidden()


def hidden() -> int:
    """How many function modes of the script are taken off in this thread."""
    return _hidden.modes


def are_on() -> bool:
    """Whether a mode of the script would see what is done now in this thread.

    Example:
        >>> are_on()
        False
    """
    return bool((modes() and _is_of_script(modes())) or (dispatch_modes() and _top() is not None))


def _is_of_script(depth: int) -> bool:
    """Whether the function mode on top is: not so for the default device, or one of ours."""
    kind = type(mode_at(depth - 1))
    return not (depth == 1 and kind is DeviceContext) and not _is_ours(kind)


def _top() -> Any:
    """The dispatch mode on top, if it is of the script; torch's own tracing stays where it is."""
    top: Any = dispatch._get_current_dispatch_mode()
    infra = top is None or getattr(top, "is_infra_mode", _no)()
    return None if infra or _is_ours(type(top)) else top


def _is_ours(kind: type) -> bool:
    return kind.__module__.startswith("steadygrad.")


def take_off() -> Taken:
    """Take the script's modes off, as far as none of ours or of torch's own stands above them."""
    functions: list[Any] = []
    while (depth := modes()) and _is_of_script(depth):
        functions.append(pop_mode())
    dispatched: list[Any] = []
    while dispatch_modes() and _top() is not None:
        dispatched.append(dispatch._pop_mode())
    _hidden.modes += len(functions)
    return functions, dispatched


def _no() -> bool:
    return False


def put_back(taken: Taken) -> None:
    """Put up again what `take_off` has taken."""
    functions, dispatched = taken
    _hidden.modes -= len(functions)
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
