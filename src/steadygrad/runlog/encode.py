"""How per-tensor figures and step columns become bytes, and back.

Four raw figures for 150 tensors are 4.8 KB a step. Norms and maxima are kept as
16-bit logarithms (within 0.15 %), zero counts as 16-bit shares, non-finite counts
as a sparse list; each is then laid out tensor by tensor with its high bytes first,
which is what lets zlib halve it again. Whatever a 16-bit logarithm cannot hold
(float64 extremes) is kept exactly beside it, so no value is ever clamped.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from functools import cache
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from steadygrad.runlog.records import STEP_DTYPE
from steadygrad.vocabulary import ACTIONS

Floats = NDArray[np.float64]
Codes = NDArray[np.uint16]
Kind = TypeVar("Kind", bound=np.generic)
Rows = NDArray[np.void]
"""Rows of `STEP_DTYPE`."""

# float32's subnormals begin at 2**-149 and its largest number is just under 2**128.
LOW_LOG2, HIGH_LOG2 = -150.0, 130.0
CODE_ZERO, CODE_EXACT, CODE_INF, CODE_NAN = 0, 65533, 65534, 65535
LAST_LOG_CODE = 65532
LOG2_STEP = (HIGH_LOG2 - LOW_LOG2) / (LAST_LOG_CODE - 1)
MOST_OPTIMIZERS = 16384
RELATIVE_ERROR = 2.0 ** (LOG2_STEP / 2) - 1.0
"""Largest relative error of a stored norm or maximum: 0.148 %."""


def encode_magnitudes(values: Floats) -> Codes:
    """Code magnitudes as 16-bit base-2 logarithms.

    Args:
        values: magnitudes, any shape, float64; 0, inf and NaN keep codes of their own.

    Returns:
        Codes of the same shape; ``CODE_EXACT`` where the value must be kept beside.

    Example:
        >>> decode_magnitudes(encode_magnitudes(np.array([0.0, np.inf])))
        array([ 0., inf])
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = np.log2(values)
        codes = np.rint((logs - LOW_LOG2) / LOG2_STEP) + 1.0
    fits = (logs >= LOW_LOG2) & (logs <= HIGH_LOG2)
    if fits.all():  # nearly always
        return codes.astype(np.uint16)
    coded = np.where(fits, codes, CODE_EXACT)
    coded = np.where(values == 0.0, CODE_ZERO, coded)
    coded = np.where(values == np.inf, CODE_INF, coded)
    return np.where(np.isnan(values), CODE_NAN, coded).astype(np.uint16)


def decode_magnitudes(codes: Codes) -> Floats:
    """Undo `encode_magnitudes`; ``CODE_EXACT`` gives NaN until it is filled in."""
    return np.asarray(_decoding_table()[codes])


@cache
def _decoding_table() -> Floats:
    table = 2.0 ** (LOW_LOG2 + (np.arange(65536, dtype=np.float64) - 1.0) * LOG2_STEP)
    table[CODE_ZERO] = 0.0
    table[CODE_EXACT] = np.nan
    table[CODE_INF] = np.inf
    table[CODE_NAN] = np.nan
    return table


def encode_shares(shares: Floats) -> Codes:
    """Code shares in 0..1 on 16 bits; only a true 0 and a true 1 get the end codes."""
    if not shares.any():  # most often
        return np.zeros(shares.shape, np.uint16)
    codes = np.rint(np.clip(shares, 0.0, 1.0) * 65535.0)
    inside = (shares > 0.0) & (shares < 1.0)
    codes = np.where(inside, np.clip(codes, 1.0, 65534.0), codes)
    return np.nan_to_num(codes, nan=0.0).astype(np.uint16)


def decode_shares(codes: Codes) -> Floats:
    """Undo `encode_shares`, to within 1.6e-5."""
    return codes / 65535.0


def pack(array: NDArray[np.generic], level: int = 6) -> bytes:
    """Compress an array, its most significant bytes together, last axis outermost."""
    columns = np.ascontiguousarray(array.T)
    swapped = columns.astype(columns.dtype.newbyteorder(">"), copy=False)
    planes = swapped.view(np.uint8).reshape(-1, array.dtype.itemsize).T
    return zlib.compress(planes.tobytes(), level)


class DamagedError(ValueError):
    """Bytes of a run file that are not what its writer puts there."""


def inflate(blob: object, most: int, what: str = "a packed column") -> bytes:
    """Decompress no more than the reader has room for.

    Args:
        blob: what `pack` gave; anything, from a file that nobody vouches for.
        most: largest number of bytes that can be right.
        what: the name of the field, for the error.

    Raises:
        DamagedError: not compressed data, or more than ``most`` bytes.
    """
    if not isinstance(blob, bytes):
        raise DamagedError(f"{what} is no bytes")
    stream = zlib.decompressobj()
    try:
        data = stream.decompress(blob, most + 1)
    except zlib.error as error:
        raise DamagedError(f"{what} cannot be decompressed ({error})") from None
    if len(data) > most or not stream.eof:
        raise DamagedError(f"{what} holds more or less than it should")
    return data


def unpack(blob: bytes, dtype: type[Kind], shape: tuple[int, ...]) -> NDArray[Kind]:
    """Undo `pack`.

    Args:
        blob: what `pack` gave.
        dtype: the dtype that was packed.
        shape: the shape that was packed.

    Returns:
        The array, in that dtype and shape.

    Raises:
        DamagedError: the bytes do not hold that.

    Example:
        >>> a = np.arange(6, dtype=np.uint16).reshape(2, 3)
        >>> unpack(pack(a), np.uint16, (2, 3)).tolist()
        [[0, 1, 2], [3, 4, 5]]
    """
    kind = np.dtype(dtype)
    size = kind.itemsize * math.prod(shape)
    data = inflate(blob, size)
    if len(data) != size:
        raise DamagedError(f"a packed column holds {len(data)} bytes in place of {size}")
    planes = np.frombuffer(data, np.uint8).reshape(kind.itemsize, -1)
    if kind.itemsize == 2:  # twice as fast as the general transposition, and the common case
        flat = (planes[0].astype(np.uint16) << 8) | planes[1]
    else:
        flat = np.ascontiguousarray(planes.T).view(kind.newbyteorder(">"))
    array: NDArray[Kind] = flat.reshape(shape[::-1]).T.astype(kind, copy=False)
    return array


def encode_steps(steps: Rows, level: int = 6) -> bytes:
    """Compress rows of `STEP_DTYPE`, column by column, every number exact."""
    columns = [_column(steps, name).view(np.int64) for name in STEP_DTYPE.names or ()]
    return pack(np.stack(columns, axis=1), level)


def _column(steps: Rows, name: str) -> NDArray[np.generic]:
    column = np.ascontiguousarray(steps[name])
    if name != "action":
        return column
    codes = np.zeros(len(column), np.int64)
    for code, action in enumerate(ACTIONS):
        codes[column == action] = code
    return codes


def decode_steps(blob: bytes, rows: int, columns: Sequence[str]) -> Rows:
    """Undo `encode_steps` for a file that holds the given columns, in that order."""
    raw = unpack(blob, np.int64, (rows, len(columns)))
    steps = blank_steps(rows)
    for index, name in enumerate(columns):
        if name == "action":
            if rows and not 0 <= raw[:, index].min() <= raw[:, index].max() < len(ACTIONS):
                raise DamagedError("a step has an action that there is not")
            steps[name] = np.array(ACTIONS)[raw[:, index]]
        elif name in (STEP_DTYPE.names or ()):
            steps[name] = np.ascontiguousarray(raw[:, index]).view(STEP_DTYPE[name])
    if rows and not 0 <= steps["optimizer"].min() <= steps["optimizer"].max() < MOST_OPTIMIZERS:
        raise DamagedError("a step is of an optimizer that there cannot be")
    return steps


def blank_steps(rows: int) -> Rows:
    """Rows of `STEP_DTYPE` in which every float is NaN, every action ``none``."""
    steps = np.zeros(rows, STEP_DTYPE)
    for name in STEP_DTYPE.names or ():
        if STEP_DTYPE[name].kind == "f":
            steps[name] = np.nan
    steps["action"] = "none"
    return steps


def pack_sparse(values: Floats, where: NDArray[np.bool_], level: int = 6) -> bytes | None:
    """Compress the values under a mask with their flat places; None for an empty mask."""
    places = np.flatnonzero(where)
    if not len(places):
        return None
    gaps = np.diff(places, prepend=0)
    return pack(np.stack([gaps, values.ravel()[places].view(np.int64)], axis=1), level)


def unpack_sparse(blob: bytes | None, into: Floats) -> Floats:
    """Write what `pack_sparse` kept into a C-ordered array of the packed shape."""
    if blob is None:
        return into
    size = len(inflate(blob, 16 * into.size))
    pairs = unpack(blob, np.int64, (size // 16, 2))
    places = np.cumsum(pairs[:, 0])
    if len(places) and not 0 <= places.min() <= places.max() < into.size:
        raise DamagedError("a list of exact values names places that are not there")
    np.put(into, places, np.ascontiguousarray(pairs[:, 1]).view(np.float64))
    return into
