"""One call of the script to a clip function: its arguments, and what becomes of it."""

from __future__ import annotations

import math
import sys
import types
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from steadygrad.invisible import invisible
from steadygrad.runlog.clip_calls import number
from steadygrad.torch.clip_calls.clips import ClipCall
from steadygrad.torch.dropins.clip_norm import clip_grad_norm_
from steadygrad.torch.internals.inlay import Arguments, Visit
from steadygrad.torch.internals.trying import is_trying

FRAMES = 12
"""How far out the function stands that calls another clip function; ours included."""


class Call:
    """The arguments of one call.

    Args:
        kind: ``norm``, ``given norm``, ``value`` or ``agc``: the function.
        names: of its parameters, in order.
        arguments: their values.
        exact: the coefficient is without torch's 1e-6, and where it is 1 nothing is written.
        parameters: the first of the arguments, where `listed` has been asked.

    Attributes:
        exact: the coefficient is without torch's 1e-6, and where it is 1 nothing is written.
        parameters: what is to be clipped, as a list.
        arguments: their values for torch, which may still read them once.
        note: what was read before it.
    """

    def __init__(
        self,
        kind: str,
        names: Sequence[str],
        arguments: Arguments,
        exact: bool = False,
        parameters: list[Any] | None = None,
    ) -> None:
        if parameters is None:
            parameters, arguments = listed(arguments)
        self.kind, self.arguments, self.exact = kind, arguments, exact
        self.note: ClipCall | None = None
        self._of = dict(zip(names, arguments, strict=True))
        self.parameters = parameters

    @property
    def norm_type(self) -> float:
        """The p of the call; 2 for what cannot be measured."""
        try:
            p = float(self._of.get("norm_type", 2.0))
        except (TypeError, ValueError):
            return 2.0
        return p if p >= 0.5 else 2.0

    @property
    def limit(self) -> Any:
        """Its threshold; NaN where each unit has its own."""
        if self.kind == "agc":
            return math.nan
        return self._of["clip_value" if self.kind == "value" else "max_norm"]

    @property
    def only_measures(self) -> bool:
        """Whether it is asked for the norm alone, at no threshold: nothing is written then."""
        return self.exact and number(self.limit) == math.inf

    @property
    def total_norm(self) -> Any:
        """The norm that the script hands to ``clip_grads_with_norm_``."""
        return self._of["total_norm"]

    def norm_before(self) -> object:
        """What a replaced call returns: the norm before clipping, as the function computes it."""
        if self.kind != "norm":
            return None
        if self.exact:
            raises = self._of["error_if_nonfinite"]
            return clip_grad_norm_(self.parameters, math.inf, self._of["norm_type"], raises)
        grads = [p.grad for p in self.parameters if p.grad is not None]
        more = (self._of[name] for name in ("norm_type", "error_if_nonfinite", "foreach"))
        return torch.nn.utils.get_total_norm(grads, *more)


def listed(arguments: Arguments) -> tuple[list[Any], Arguments]:
    """What is to be clipped, as a list, and arguments of which torch may still read it once.

    Example:
        >>> parameters, (for_torch, limit) = listed(((t for t in "ab"), 1.0))
        >>> parameters, list(for_torch), limit
        (['a', 'b'], ['a', 'b'], 1.0)
    """
    parameters = arguments[0]
    if isinstance(parameters, torch.Tensor):
        return [parameters], arguments
    if isinstance(parameters, (list, tuple)):
        return list(parameters), arguments
    if not hasattr(parameters, "__iter__"):
        return [], arguments  # torch says it better
    items: list[Any] = []
    try:
        items.extend(parameters)
    except Exception as error:  # the script's: for torch to meet where it reads them
        return [], (failing_after(items, error), *arguments[1:])
    # torch warns of an exhausted generator, and of nothing else
    spent = isinstance(parameters, types.GeneratorType) and not items
    again: Any = (item for item in items) if spent else list(items)
    return items, (again, *arguments[1:])


class ClipVisit(Visit):
    """One call of the script to a clip function, from its start to its end.

    Args:
        call: its arguments.
        over: told of the call and of what the function has returned.
    """

    def __init__(self, call: Call, over: Callable[[Call, object], None]) -> None:
        super().__init__(call.arguments)
        self._call, self._over = call, over

    def returns(self, result: object) -> object:
        self._over(self._call, result)
        return result


class Replacement(Visit):
    """A call that does nothing, since a policy acts in its place.

    Args:
        call: its arguments.
        result: what it returns.
    """

    replaced = True

    def __init__(self, call: Call, result: object) -> None:
        super().__init__(call.arguments)
        self.result = result


@invisible
def failing_after(items: list[Any], error: Exception) -> Iterator[Any]:
    """What gives some items, and then raises, as a generator of the script's did."""
    yield from items
    trace, ours = error.__traceback__, (listed.__code__, failing_after.__code__)
    while trace is not None and trace.tb_frame.f_code in ours:  # those who have read it before
        trace = trace.tb_next
    raise error.with_traceback(trace)


def inside_another(kind: str) -> bool:
    """Whether a call is part of something else.

    ``clip_grad_norm_`` calls the function that takes the norm; and a copy of an optimizer that is
    tried out may clip in its step.
    """
    if is_trying():
        return True
    if kind != "given norm":
        return False
    frame = sys._getframe(1)
    for _ in range(FRAMES):
        if frame is None:
            return False
        code = frame.f_code
        if code.co_name == "clip_grad_norm_" and code.co_filename == _CLIP_FILE:
            return True
        frame = frame.f_back  # type: ignore[assignment]
    return False


_CLIP_FILE = sys.modules["torch.nn.utils.clip_grad"].__file__
