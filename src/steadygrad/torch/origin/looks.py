"""One tensor during a replay, read: its range, and what is wrong with it."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from steadygrad.runlog.origin import Range
from steadygrad.torch.internals.private import is_wrapped, unwrapped
from steadygrad.torch.internals.transforms import temporarily_clear_interpreter_stack

_INF, _NAN = float("inf"), float("nan")
_ORDERED = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


@dataclass(eq=False)
class Look:
    """One tensor, read: its range, and what is wrong with it.

    Attributes:
        range: its figures.
        kind: ``nan``, ``inf`` or empty.
        positive: +inf is among it.
        rows: rows along its first axis that hold what is non-finite.
    """

    range: Range
    kind: str = ""
    positive: bool = False
    rows: tuple[int, ...] = ()


def look_at(tensor: torch.Tensor, name: str) -> Look:
    """Read a floating tensor."""
    if is_wrapped(tensor):  # under vmap or another transform: what it stands for
        with temporarily_clear_interpreter_stack():
            return look_at(within(tensor), name)
    with torch.no_grad():
        values = tensor.detach()
        values = torch.view_as_real(values) if values.is_complex() else values
        if values.dtype not in _ORDERED:
            values = values.float()
        low, high = (float(v) for v in torch.aminmax(values))
        shape, dtype = tuple(tensor.shape), str(tensor.dtype).removeprefix("torch.")
        if abs(low) < _INF and abs(high) < _INF:
            return Look(Range(name, shape, dtype, low, high))
        finite = torch.isfinite(values)
        finite_values = values[finite]
        low, high = (
            (float(v) for v in torch.aminmax(finite_values)) if len(finite_values) else (_NAN, _NAN)
        )
        bad = int(finite.numel() - len(finite_values))
        kind = "nan" if bool(torch.isnan(values).any()) else "inf"
        positive = bool((values == _INF).any())
        return Look(Range(name, shape, dtype, low, high, bad), kind, positive, _rows(~finite))


def _rows(bad: torch.Tensor) -> tuple[int, ...]:
    if bad.dim() == 0:
        return ()
    flat = bad.reshape(bad.shape[0], -1).any(dim=1)
    return tuple(flat.nonzero().flatten().tolist())


def is_readable(tensor: torch.Tensor) -> bool:
    """Whether it holds floating or complex numbers that can be read here."""
    numbers = tensor.is_floating_point() or tensor.is_complex()
    return numbers and tensor.layout is torch.strided and tensor.numel() > 0 and not tensor.is_meta


def is_mask(look: Look) -> bool:
    """Zeros and -inf, as masks are written that are added to scores."""
    zeros = look.range.low != look.range.low or (look.range.low == 0 == look.range.high)
    return zeros and not look.positive


def within(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor inside the wrappers of transforms such as vmap."""
    while is_wrapped(tensor):
        tensor = unwrapped(tensor)
    return tensor


def storage_of(tensor: torch.Tensor) -> int:
    """The address of its memory, by which views are known."""
    return within(tensor).untyped_storage().data_ptr()
