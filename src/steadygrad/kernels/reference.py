"""The reference form: plain torch calls, exact for every dtype and layout.

On a CPU, 2-norms take a quick route (float64 inner products); a tensor for which that
could be wrong (too large, too small, not finite) is measured again, scaled. On a device
everything is scaled, since choosing a route would need the host to read a figure. Both
work in chunks, so that no wide copy of a large tensor is ever made. Sums of float32
squares would be quicker, but are off by 6e-6 where all elements are equal.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np
import torch

from steadygrad.stats import combine_norms

if TYPE_CHECKING:
    from steadygrad.typing import Namespace

CHUNK = 1 << 20
CACHED = 1 << 16  # elements whose float64 copy stays in the cache
INF = math.inf
_TWICE_ROUNDED = {torch.float16, torch.bfloat16} | {
    dtype
    for name, dtype in vars(torch).items()
    if name.startswith("float8") and isinstance(dtype, torch.dtype)
}


class Read(NamedTuple):
    """What one read tells, one element a tensor.

    Attributes:
        norms: p-norms, float64; nan where the tensor holds NaN, else inf where it holds inf.
        max_abs: largest magnitude of the finite elements, float64; 0 where there is none.
        nonfinite: number of NaN and inf elements, int64.
        zeros: number of elements equal to zero, int64; what a sparse tensor does not store counts.
        total: p-norm of all tensors taken as one vector, 0-d; None where a form does not join.
        elsewhere: NaN and inf elements in tensors that only other ranks hold; no form sets it.
        own: norm, and number of NaN and inf elements, of what this rank holds, ``[2]``; None where
            nothing was exchanged; no form sets it.
    """

    norms: Any
    max_abs: Any
    nonfinite: Any
    zeros: Any
    total: Any = None
    elsewhere: Any = 0
    own: Any = None


def read(tensors: Sequence[torch.Tensor], norm_type: float) -> Read:
    """Measure; see `steadygrad.kernels.read`."""
    with torch.no_grad():
        if all(tensor.device.type == "cpu" for tensor in tensors):
            return _read_host(tensors, norm_type)
        return _read_device(tensors, norm_type)


def scale_(tensors: Sequence[torch.Tensor], coefs: Any) -> None:
    """Multiply; see `steadygrad.kernels.scale_`."""
    on_device = isinstance(coefs, torch.Tensor) and coefs.device.type != "cpu"
    each = coefs if on_device else np.broadcast_to(np.asarray(coefs, np.float64), (len(tensors),))
    shared = on_device and coefs.ndim == 0
    with torch.no_grad():
        for index, tensor in enumerate(tensors):
            coef = each if shared else each[index]
            if on_device or coef != 1.0:
                _scale_one(tensor, coef if on_device else float(coef))


def stored_values(tensor: torch.Tensor) -> torch.Tensor:
    """A dense tensor with the elements that count: the summed values of a sparse one.

    Duplicates are summed in float64: float16 ones would overflow, and float32 ones
    would be rounded before they are measured.
    """
    tensor = tensor.detach()
    if tensor.layout is torch.strided:
        return tensor
    if tensor.layout is not torch.sparse_coo:
        return tensor.values()  # compressed layouts hold no duplicates
    if tensor.is_coalesced():
        return tensor._values()
    wide = torch.complex128 if tensor.is_complex() else torch.float64
    return tensor.to(wide).coalesce()._values()


def chunks(tensor: torch.Tensor) -> list[torch.Tensor]:
    """Views that cover a strided tensor, of at most `CHUNK` elements each."""
    flat = dense_view(tensor)
    if flat is not None:
        return list(torch.split(flat, CHUNK))
    if tensor.numel() <= CHUNK:
        return [tensor]
    axis = max(range(tensor.ndim), key=tensor.shape.__getitem__)
    half = tensor.shape[axis] // 2
    rest = tensor.shape[axis] - half
    return chunks(tensor.narrow(axis, 0, half)) + chunks(tensor.narrow(axis, half, rest))


def dense_view(tensor: torch.Tensor) -> torch.Tensor | None:
    """All elements as one contiguous 1-d view in memory order; None where there are gaps."""
    if tensor.is_contiguous():
        return tensor.view(-1)
    expected = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size != 1:
            if stride != expected:
                return None
            expected *= size
    return tensor.as_strided((tensor.numel(),), (1,))


def _read_host(tensors: Sequence[torch.Tensor], norm_type: float) -> Read:
    rows = [_quick(tensor, norm_type) or _exact_host(tensor, norm_type) for tensor in tensors]
    norms, max_abs, nonfinite, zeros = zip(*rows, strict=True) if rows else ((),) * 4
    return Read(
        np.array(norms, np.float64),
        np.array(max_abs, np.float64),
        np.array(nonfinite, np.int64),
        np.array(zeros, np.int64),
    )


def _read_device(tensors: Sequence[torch.Tensor], norm_type: float) -> Read:
    home = next(tensor.device for tensor in tensors if tensor.device.type != "cpu")
    rows = [_exact(tensor, norm_type) for tensor in tensors]
    columns = zip(*rows, strict=True)
    return Read(*(torch.stack([x.to(home, non_blocking=True) for x in c]) for c in columns))


def _quick(tensor: torch.Tensor, p: float) -> tuple[float, float, int, int] | None:
    """Figures of a dense, finite, real tensor of ordinary size; None where in doubt."""
    if tensor.is_complex() or tensor.layout is not torch.strided or p not in (2.0, INF):
        return None
    if tensor.numel() == 0:
        return 0.0, 0.0, 0, 0
    squares, largest, nonzero = 0.0, 0.0, 0
    for chunk in chunks(tensor.detach()):
        values = chunk if chunk.dtype in (torch.float32, torch.float64) else chunk.float()
        low, high = torch.aminmax(values)
        largest = max(largest, -low.item(), high.item())
        if not (math.isfinite(low.item()) and math.isfinite(high.item())):
            return None
        nonzero += int(torch.count_nonzero(values))
        squares += _square_sum(values.reshape(-1)) if p == 2.0 else 0.0
    norm = largest if p == INF else math.sqrt(squares)
    # below this norm, underflow of float64 squares could take 1e-8 of their sum
    floor = 1e-150 * math.sqrt(tensor.numel())
    if p == 2.0 and largest > 0.0 and not floor <= norm < INF:
        return None
    return norm, largest, 0, tensor.numel() - nonzero


def _square_sum(flat: torch.Tensor) -> float:
    total = 0.0
    for piece in torch.split(flat, CACHED):
        wide = piece.double()
        total += torch.dot(wide, wide).item()
    return total


def _exact_host(tensor: torch.Tensor, p: float) -> tuple[float, float, int, int]:
    norm, largest, nonfinite, zeros = _exact(tensor, p)
    return norm.item(), largest.item(), int(nonfinite), int(zeros)


def _exact(tensor: torch.Tensor, p: float) -> tuple[torch.Tensor, ...]:
    """The four figures of any tensor, 0-d on its device; no figure is read by the host."""
    values = stored_values(tensor)
    missing = tensor.numel() - values.numel()
    parts = [_exact_chunk(chunk, p) for chunk in chunks(values) if chunk.numel()]
    if not parts:
        zero = torch.zeros((), dtype=torch.float64, device=tensor.device)
        return zero, zero, zero.long(), zero.long() + missing
    norms, largest, nonfinite, zeros = (torch.stack(c) for c in zip(*parts, strict=True))
    norm = cast("torch.Tensor", combine_norms(cast("Namespace", torch), norms, p))
    return norm, largest.max(), nonfinite.sum(), zeros.sum() + missing


def _exact_chunk(chunk: torch.Tensor, p: float) -> tuple[torch.Tensor, ...]:
    magnitude = chunk.to(torch.complex128 if chunk.is_complex() else torch.float64).abs()
    finite = torch.isfinite(magnitude)
    clean = torch.where(finite, magnitude, 0.0)
    largest = clean.max()
    scale = torch.where(largest > 0, largest, 1.0)
    if p == INF:
        norm = largest
    elif p == 2.0:
        norm = scale * torch.sqrt(torch.sum((clean / scale) ** 2))
    else:
        norm = scale * torch.sum((clean / scale) ** p) ** (1.0 / p)
    norm = torch.where(finite.all(), norm, INF)
    broken = chunk if chunk.is_complex() else magnitude  # |inf + nan i| is inf
    norm = torch.where(torch.isnan(broken).any(), math.nan, norm)
    return norm, largest, (~finite).sum(), (magnitude == 0).sum()


def _scale_one(tensor: torch.Tensor, coef: Any) -> None:
    values = _once(tensor) if tensor.layout is torch.strided else _writable_values(tensor)
    if values.is_complex():
        # as pairs of reals: a complex product would turn an inf part into NaN
        values = torch.view_as_real(values.conj() if values.is_conj() else values)
    if isinstance(coef, torch.Tensor):
        coef = coef.to(values.device, torch.float64, non_blocking=True)
    for chunk in chunks(values):
        product = chunk.to(torch.float64) * coef
        chunk.copy_(to_odd(product) if chunk.dtype in _TWICE_ROUNDED else product)


def to_odd(wide: torch.Tensor) -> torch.Tensor:
    """Float64 as float32, towards zero with the last bit set where inexact.

    torch takes float64 to 16 bits by way of float32, so one value in 8,192 is rounded
    twice, wrongly; rounded to odd first, the second rounding is the only one.
    """
    near = wide.to(torch.float32)
    over = (near.abs().double() > wide.abs()).int()
    inexact = (near.double() != wide).int()
    return ((near.view(torch.int32) - over) | inexact).view(torch.float32)


def _once(tensor: torch.Tensor) -> torch.Tensor:
    """The elements of an expanded tensor that have memory of their own."""
    for dim, (size, stride) in enumerate(zip(tensor.shape, tensor.stride(), strict=True)):
        if stride == 0 and size > 1:
            tensor = tensor.narrow(dim, 0, 1)
    return tensor


def _writable_values(tensor: torch.Tensor) -> torch.Tensor:
    values = tensor._values() if tensor.layout is torch.sparse_coo else tensor.values()
    return values.detach()  # a view that goes by way of a compressed tensor has no strides
