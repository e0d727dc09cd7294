"""The Triton form: two launches measure any number of tensors, one multiplies them.

Work is cut into chunks of tensors, one program each, whose partial figures a second,
small launch joins a tensor at a time. Nothing is read by the host: pointers go up
when they change, figures stay on the device, and the multiplication reads its
coefficient there and returns at once where it is 1. The arithmetic is that of the C
form: float64 sums, scaled by a power of two where squares would leave its range.

Importing needs Triton; only `auto` and ``form="triton"`` do so.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import triton
import triton.language as tl

from steadygrad.errors import KernelError
from steadygrad.kernels import reference
from steadygrad.kernels.reference import Read, dense_view

CHUNK = 1 << 15
BLOCK = 1 << 10
SCALE_BLOCK = 1 << 10
INTERPRETED = bool(triton.knobs.runtime.interpret)
# 16-bit and complex types come with what a pointer to their parts points at.
PARTS = {
    torch.float32: (tl.float32, False),
    torch.float64: (tl.float64, False),
    torch.float16: (tl.float16, False),
    torch.bfloat16: (tl.bfloat16, False),
    torch.complex64: (tl.float32, True),
    torch.complex128: (tl.float64, True),
}
_KEPT_TABLES = 16


@triton.jit
def _magnitudes(base, i, live, COMPLEX: tl.constexpr):  # type: ignore[no-untyped-def]
    """|g| in a type wide enough for it, and where it is finite and where NaN."""
    if COMPLEX:
        re = tl.abs(tl.load(base + 2 * i, mask=live, other=0.0).to(tl.float64))
        im = tl.abs(tl.load(base + 2 * i + 1, mask=live, other=0.0).to(tl.float64))
        finite = (re < float("inf")) & (im < float("inf"))
        nan = (re != re) | (im != im)
        high = tl.where(finite, tl.maximum(re, im), 0.0)
        low = tl.where(finite, tl.minimum(re, im), 0.0)
        ratio = low / tl.where(high > 0, high, 1.0)
        a = high * tl.sqrt(1.0 + ratio * ratio)
    else:
        x = tl.load(base + i, mask=live, other=0.0)
        if x.dtype != tl.float64:
            x = x.to(tl.float32)
        x = tl.abs(x)
        finite = x < float("inf")
        nan = x != x
        a = tl.where(finite, x, 0.0)
    return a, finite, nan


@triton.jit
def _measure(  # type: ignore[no-untyped-def]
    pointers,
    sizes,
    owners,
    firsts,
    units,
    sums,
    maxima,
    counts,
    chunks,
    p,
    PART: tl.constexpr,
    COMPLEX: tl.constexpr,
    NORM: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Figures of one chunk. `counts` holds non-finite, NaN and zero elements, a row each."""
    chunk = tl.program_id(0)
    owner = tl.load(owners + chunk)
    base = tl.load(pointers + owner).to(tl.pointer_type(PART))
    size = tl.load(sizes + owner)
    start = (chunk - tl.load(firsts + owner)).to(tl.int64) * CHUNK
    lanes = tl.arange(0, BLOCK)
    squares = tl.zeros([BLOCK], tl.float64)
    WIDE: tl.constexpr = tl.float64 if COMPLEX or PART == tl.float64 else tl.float32
    peaks = tl.zeros([BLOCK], WIDE)
    nonfinite = tl.zeros([BLOCK], tl.int32)
    nans = tl.zeros([BLOCK], tl.int32)
    zeros = tl.zeros([BLOCK], tl.int32)
    for offset in range(0, tl.minimum(size - start, CHUNK), BLOCK):
        i = start + offset + lanes
        live = i < size
        a, finite, nan = _magnitudes(base, i, live, COMPLEX)
        wide = a.to(tl.float64)
        squares += wide * wide
        peaks = tl.maximum(peaks, a)
        nonfinite += (live & (finite == 0)).to(tl.int32)
        nans += nan.to(tl.int32)
        zeros += (live & finite & (a == 0)).to(tl.int32)
    peak = tl.max(peaks, 0).to(tl.float64)
    total = tl.sum(squares, 0)
    unit = peak * 0.0 + 1.0
    if NORM == 2:
        if WIDE == tl.float64:
            unit = tl.where(peak > 2.0**480, 2.0**600, unit)
            unit = tl.where((peak > 0) & (peak < 2.0**-400), 2.0**-600, unit)
            if unit != 1.0:  # squares would leave float64's range
                total = _power_sum(base, start, size, unit, 2.0, COMPLEX, 2, CHUNK, BLOCK)
    elif NORM == 0:
        unit = tl.where(peak > 0, peak, 1.0)
        total = _power_sum(base, start, size, unit, p, COMPLEX, 0, CHUNK, BLOCK)
    tl.store(units + chunk, unit)
    tl.store(sums + chunk, total)
    tl.store(maxima + chunk, peak)
    tl.store(counts + chunk, tl.sum(nonfinite, 0))
    tl.store(counts + chunks + chunk, tl.sum(nans, 0))
    tl.store(counts + 2 * chunks + chunk, tl.sum(zeros, 0))


@triton.jit
def _power_sum(  # type: ignore[no-untyped-def]
    base,
    start,
    size,
    unit,
    p,
    COMPLEX: tl.constexpr,
    NORM: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Sum of (|g| / unit)^p over a chunk that has just been read, and is cached."""
    total = tl.zeros([BLOCK], tl.float64)
    for offset in range(0, tl.minimum(size - start, CHUNK), BLOCK):
        i = start + offset + tl.arange(0, BLOCK)
        a, _finite, _nan = _magnitudes(base, i, i < size, COMPLEX)
        total += _power(a.to(tl.float64) / unit, p, NORM)
    return tl.sum(total, 0)


@triton.jit
def _power(ratio, p, NORM: tl.constexpr):  # type: ignore[no-untyped-def]
    if NORM == 2:
        result = ratio * ratio
    else:
        safe = tl.where(ratio > 0, ratio, 1.0)
        result = tl.where(ratio > 0, tl.exp2(p * tl.log2(safe)), 0.0)
    return result


@triton.jit
def _join(  # type: ignore[no-untyped-def]
    firsts,
    places,
    units,
    sums,
    maxima,
    counts,
    chunks,
    p,
    norms,
    max_abs,
    nonfinite,
    zeros,
    NORM: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Figures of one tensor from those of its chunks."""
    owner = tl.program_id(0)
    first = tl.load(firsts + owner)
    last = tl.load(firsts + owner + 1)
    place = tl.load(places + owner)
    lanes = tl.arange(0, BLOCK)
    units_seen = tl.zeros([BLOCK], tl.float64)
    peaks = tl.zeros([BLOCK], tl.float64)
    bad = tl.zeros([BLOCK], tl.int64)
    nan = tl.zeros([BLOCK], tl.int64)
    nil = tl.zeros([BLOCK], tl.int64)
    for offset in range(first, last, BLOCK):
        i = offset + lanes
        live = i < last
        peak = tl.load(maxima + i, mask=live, other=0.0)
        unit = tl.load(units + i, mask=live, other=0.0)
        units_seen = tl.maximum(units_seen, tl.where(peak > 0, unit, 0.0))
        peaks = tl.maximum(peaks, peak)
        bad += tl.load(counts + i, mask=live, other=0).to(tl.int64)
        nan += tl.load(counts + chunks + i, mask=live, other=0).to(tl.int64)
        nil += tl.load(counts + 2 * chunks + i, mask=live, other=0).to(tl.int64)
    unit = tl.max(units_seen, 0)
    unit = tl.where(unit > 0, unit, 1.0)
    total = tl.zeros([BLOCK], tl.float64)
    for offset in range(first, last, BLOCK):
        i = offset + lanes
        part = tl.load(sums + i, mask=i < last, other=0.0)
        ratio = tl.load(units + i, mask=i < last, other=0.0) / unit
        if NORM == 2:
            total += part * ratio * ratio  # a square taken first would underflow
        else:
            total += tl.where(part > 0, part * _power(ratio, p, NORM), 0.0)
    joined = tl.sum(total, 0)
    peak = tl.max(peaks, 0)
    broken = tl.sum(bad, 0)
    if NORM == 2:
        norm = unit * tl.sqrt(joined)
    elif NORM == 1:
        norm = peak
    else:
        norm = unit * _power(joined, 1.0 / p, NORM)
    norm = tl.where(broken > 0, float("inf"), norm)
    norm = tl.where(tl.sum(nan, 0) > 0, float("nan"), norm)
    tl.store(norms + place, norm)
    tl.store(max_abs + place, peak)
    tl.store(nonfinite + place, broken)
    tl.store(zeros + place, tl.sum(nil, 0))


@triton.jit
def _odd(x):  # type: ignore[no-untyped-def]
    """Float64 as float32 rounded to odd: a second rounding is then the only one."""
    near = x.to(tl.float32)
    bits = near.to(tl.int32, bitcast=True)
    bits = bits - (tl.abs(near).to(tl.float64) > tl.abs(x)).to(tl.int32)
    bits = bits | (near.to(tl.float64) != x).to(tl.int32)
    return bits.to(tl.float32, bitcast=True)


@triton.jit
def _bfloat16(x):  # type: ignore[no-untyped-def]
    """Nearest, ties to even, by hand: backends differ in how they convert."""
    bits = x.to(tl.int32, bitcast=True)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    rounded = tl.where(x != x, 0x7FC0, rounded)
    return rounded.to(tl.int16).to(tl.bfloat16, bitcast=True)


@triton.jit
def _multiply(  # type: ignore[no-untyped-def]
    pointers,
    sizes,
    owners,
    firsts,
    places,
    coefs,
    coef_step,
    PART: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One chunk times its tensor's coefficient; nothing at all where that is 1."""
    chunk = tl.program_id(0)
    owner = tl.load(owners + chunk)
    coef = tl.load(coefs + tl.load(places + owner) * coef_step)
    if coef != 1.0:
        base = tl.load(pointers + owner).to(tl.pointer_type(PART))
        size = tl.load(sizes + owner)
        start = (chunk - tl.load(firsts + owner)).to(tl.int64) * CHUNK
        for offset in range(0, tl.minimum(size - start, CHUNK), BLOCK):
            i = start + offset + tl.arange(0, BLOCK)
            product = tl.load(base + i, mask=i < size, other=0.0).to(tl.float64) * coef
            if PART == tl.float64:
                result = product
            elif PART == tl.float32:
                result = product.to(tl.float32)
            elif PART == tl.float16:
                result = _odd(product).to(tl.float16)
            else:
                result = _bfloat16(_odd(product))
            tl.store(base + i, result, mask=i < size)


@dataclass(frozen=True)
class Table:
    """Where the tensors of one dtype lie, on the device.

    Attributes:
        pointers, sizes, places: one a tensor: address, elements, position in the result.
        firsts: number of the first chunk of each tensor, and one past the last.
        owners: the tensor that each chunk belongs to.
        chunks: how many chunks.
    """

    pointers: torch.Tensor
    sizes: torch.Tensor
    places: torch.Tensor
    firsts: torch.Tensor
    owners: torch.Tensor
    chunks: int


_tables: OrderedDict[Any, Table] = OrderedDict()


def serves(tensor: torch.Tensor) -> bool:
    """Whether this form can measure the tensor (and write it, where its memory is dense)."""
    return (
        type(tensor) in (torch.Tensor, torch.nn.Parameter)
        and (tensor.is_cuda or INTERPRETED)
        and tensor.layout is torch.strided
        and tensor.dtype in PARTS
    )


def read(tensors: Sequence[torch.Tensor], norm_type: float) -> Read:
    """Measure; see `steadygrad.kernels.read`."""
    require(tensors)
    n, device = len(tensors), tensors[0].device
    norms, max_abs = torch.zeros((2, n), dtype=torch.float64, device=device)
    nonfinite, zeros = torch.zeros((2, n), dtype=torch.int64, device=device)
    for dtype, places in by_dtype(tensors).items():
        flat = [flattened(tensors[i]) for i in places]
        outputs = (norms, max_abs, nonfinite, zeros)
        _measure_group(flat, dtype, places, norm_type, outputs)
    return Read(norms, max_abs, nonfinite, zeros)


def scale_(tensors: Sequence[torch.Tensor], coefs: Any) -> None:
    """Multiply; see `steadygrad.kernels.scale_`."""
    require(tensors)
    device = tensors[0].device
    each = torch.as_tensor(coefs, dtype=torch.float64).to(device, non_blocking=True)
    step = 0 if each.ndim == 0 else 1
    with torch.no_grad():
        for dtype, places in by_dtype(tensors).items():
            dense = [i for i in places if dense_view(tensors[i]) is not None]
            flat = [dense_view(tensors[i]) for i in dense]
            _multiply_group(flat, dtype, dense, each, step)
            for i in sorted(set(places) - set(dense)):
                reference.scale_([tensors[i]], each[i] if step else each)
    torch.autograd.graph.increment_version(list(tensors))


def require(tensors: Sequence[torch.Tensor]) -> None:
    """Raise unless every tensor can be served, all of them on one device."""
    for tensor in tensors:
        if not serves(tensor) or tensor.device != tensors[0].device:
            raise KernelError(
                'form "triton" serves strided, floating-point or complex torch tensors, all on one '
                f"GPU; got {type(tensor).__name__} of dtype {tensor.dtype}, layout "
                f'{tensor.layout}, on {tensor.device}. Use form="auto"'
            )
    if not tensors:
        raise KernelError('form "triton" was given no tensors; use form="auto"')


def by_dtype(tensors: Sequence[torch.Tensor]) -> dict[torch.dtype, list[int]]:
    """Positions of the tensors of each dtype."""
    groups: dict[torch.dtype, list[int]] = {}
    for index, tensor in enumerate(tensors):
        groups.setdefault(tensor.dtype, []).append(index)
    return groups


def flattened(tensor: torch.Tensor) -> torch.Tensor:
    """The elements as flat memory; a copy on the device where there are gaps."""
    flat = dense_view(tensor.detach())
    return tensor.detach().reshape(-1).clone() if flat is None else flat


def table_of(flat: Sequence[torch.Tensor], places: Sequence[int], parts: int) -> Table:
    """The table for these tensors, from the last ones used where nothing has moved.

    Args:
        flat: flat tensors of one dtype.
        places: where each stands in the result.
        parts: real numbers an element, that sizes are to be counted in.
    """
    key = (
        flat[0].device,
        parts,
        tuple(places),
        tuple(t.data_ptr() for t in flat),
        tuple(t.numel() for t in flat),
    )
    if key not in _tables:
        sizes = np.array(key[4], np.int64) * parts
        _tables[key] = build_table(np.array(key[3], np.int64), sizes, places, flat[0].device)
        if len(_tables) > _KEPT_TABLES:
            _tables.popitem(last=False)
    _tables.move_to_end(key)
    return _tables[key]


def build_table(
    pointers: npt.NDArray[np.int64],
    sizes: npt.NDArray[np.int64],
    places: Sequence[int],
    device: torch.device,
) -> Table:
    """Cut into chunks, and send up without waiting."""
    counts = -(-sizes // CHUNK)
    firsts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
    owners = np.repeat(np.arange(len(sizes), dtype=np.int32), counts)
    columns = (pointers, sizes, np.array(places, np.int32), firsts, owners)
    return Table(*(upload(column, device) for column in columns), chunks=len(owners))


def upload(column: npt.NDArray[Any], device: torch.device) -> torch.Tensor:
    """Copy to the device without a host synchronisation: pinned memory allows that."""
    host = torch.from_numpy(column)
    return host if device.type == "cpu" else host.pin_memory().to(device, non_blocking=True)


def _measure_group(
    flat: list[torch.Tensor],
    dtype: torch.dtype,
    places: list[int],
    p: float,
    outputs: tuple[torch.Tensor, ...],
) -> None:
    part, is_complex = PARTS[dtype]
    table, device = table_of(flat, places, 1), flat[0].device
    reals = torch.empty((3, table.chunks), dtype=torch.float64, device=device)
    counts = torch.empty((3, table.chunks), dtype=torch.int32, device=device)
    norm = {2.0: 2, math.inf: 1}.get(p, 0)
    shared = (*reals, counts, table.chunks, float(p) if norm == 0 else 2.0)
    if table.chunks:
        lists = (table.pointers, table.sizes, table.owners, table.firsts)
        grid = (table.chunks,)
        _measure[grid](*lists, *shared, part, is_complex, norm, CHUNK, BLOCK, num_warps=8)
    _join[(len(flat),)](table.firsts, table.places, *shared, *outputs, norm, BLOCK)


def _multiply_group(
    flat: list[Any], dtype: torch.dtype, places: list[int], coefs: torch.Tensor, step: int
) -> None:
    if not flat:
        return
    part, is_complex = PARTS[dtype]
    table = table_of(flat, places, 2 if is_complex else 1)
    if table.chunks:
        lists = (table.pointers, table.sizes, table.owners, table.firsts, table.places)
        _multiply[(table.chunks,)](*lists, coefs, step, part, CHUNK, SCALE_BLOCK, num_warps=8)
