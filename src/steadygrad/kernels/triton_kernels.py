"""Device code of the Triton form; `triton_form` launches it.

Sums are float64. A float given to a kernel would arrive as float32, so p is a constant
of the compiled kernel instead. Conversions to 16 bits are spelt out: backends differ
in how they round them.
"""

# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _magnitudes(base, i, live, COMPLEX: tl.constexpr):
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
def measure(
    pointers,
    sizes,
    owners,
    firsts,
    units,
    sums,
    maxima,
    counts,
    chunks,
    p: tl.constexpr,
    kind: tl.constexpr,
    COMPLEX: tl.constexpr,
    NORM: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Figures of one chunk. `counts` holds non-finite, NaN and zero elements, a row each."""
    chunk = tl.program_id(0)
    owner = tl.load(owners + chunk)
    base = tl.load(pointers + owner).to(tl.pointer_type(kind))
    size = tl.load(sizes + owner)
    start = (chunk - tl.load(firsts + owner)).to(tl.int64) * CHUNK
    lanes = tl.arange(0, BLOCK)
    squares = tl.zeros([BLOCK], tl.float64)
    wide_type: tl.constexpr = tl.float64 if COMPLEX or kind == tl.float64 else tl.float32
    peaks = tl.zeros([BLOCK], wide_type)
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
        if wide_type == tl.float64:
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
def _power_sum(
    base,
    start,
    size,
    unit,
    p: tl.constexpr,
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
def _power(ratio, p: tl.constexpr, NORM: tl.constexpr):
    if NORM == 2:
        result = ratio * ratio
    else:
        safe = tl.where(ratio > 0, ratio, 1.0)
        result = tl.where(ratio > 0, tl.exp2(p * tl.log2(safe)), 0.0)
    return result


@triton.jit
def join(
    firsts,
    places,
    units,
    sums,
    maxima,
    counts,
    chunks,
    p: tl.constexpr,
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
def _odd(x):
    """Float64 as float32 rounded to odd: a second rounding is then the only one."""
    near = x.to(tl.float32)
    bits = near.to(tl.int32, bitcast=True)
    bits = bits - (tl.abs(near).to(tl.float64) > tl.abs(x)).to(tl.int32)
    bits = bits | (near.to(tl.float64) != x).to(tl.int32)
    return bits.to(tl.float32, bitcast=True)


@triton.jit
def _bfloat16(x):
    """Nearest, ties to even, by hand: backends differ in how they convert."""
    bits = x.to(tl.int32, bitcast=True)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    rounded = tl.where(x != x, 0x7FC0, rounded)
    return rounded.to(tl.int16).to(tl.bfloat16, bitcast=True)


@triton.jit
def multiply(
    pointers,
    sizes,
    owners,
    firsts,
    places,
    coefs,
    coef_step,
    kind: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One chunk times its tensor's coefficient; nothing at all where that is 1."""
    chunk = tl.program_id(0)
    owner = tl.load(owners + chunk)
    coef = tl.load(coefs + tl.load(places + owner) * coef_step)
    if coef != 1.0:
        base = tl.load(pointers + owner).to(tl.pointer_type(kind))
        size = tl.load(sizes + owner)
        start = (chunk - tl.load(firsts + owner)).to(tl.int64) * CHUNK
        for offset in range(0, tl.minimum(size - start, CHUNK), BLOCK):
            i = start + offset + tl.arange(0, BLOCK)
            product = tl.load(base + i, mask=i < size, other=0.0).to(tl.float64) * coef
            if kind == tl.float64:
                result = product
            elif kind == tl.float32:
                result = product.to(tl.float32)
            elif kind == tl.float16:
                result = _odd(product).to(tl.float16)
            else:
                result = _bfloat16(_odd(product))
            tl.store(base + i, result, mask=i < size)
