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
import os
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import triton.language as tl

from steadygrad.errors import KernelError
from steadygrad.kernels import reference
from steadygrad.kernels.reference import Read, dense_view
from steadygrad.kernels.triton_kernels import join, measure, multiply

CHUNK = 1 << 15
BLOCK = 1 << 10
LAUNCH = {"num_warps": 8, "enable_fp_fusion": True}
# as Triton itself reads it; `triton.knobs` is there from 3.4 on only, and torch 2.6 comes with 3.2
INTERPRETED = os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "yes", "on", "y")
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


_tables: OrderedDict[object, Table] = OrderedDict()


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
    if not tensors:
        return reference.read(tensors, norm_type)
    n, device = len(tensors), tensors[0].device
    norms, max_abs = torch.zeros((2, n), dtype=torch.float64, device=device)
    nonfinite, zeros = torch.zeros((2, n), dtype=torch.int64, device=device)
    figures = (norms, max_abs, nonfinite, zeros)
    for dtype, places in by_dtype(tensors).items():
        flat = [flattened(tensors[i]) for i in places]
        _measure_group(flat, dtype, places, norm_type, figures)
    return Read(*(f.numpy() for f in figures)) if device.type == "cpu" else Read(*figures)


def scale_(tensors: Sequence[torch.Tensor], coefs: Any) -> None:
    """Multiply; see `steadygrad.kernels.scale_`."""
    require(tensors)
    if not isinstance(coefs, torch.Tensor):  # known here: leave out what is not to be written
        each_known = np.broadcast_to(np.asarray(coefs, np.float64), (len(tensors),))
        written = [i for i, coef in enumerate(each_known) if coef != 1.0]
        tensors, coefs = [tensors[i] for i in written], torch.from_numpy(each_known[written])
    if not tensors:
        return
    each = coefs.to(tensors[0].device, torch.float64, non_blocking=True)
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
    pointers_up, sizes_up, places_up, firsts_up, owners_up = (upload(c, device) for c in columns)
    return Table(pointers_up, sizes_up, places_up, firsts_up, owners_up, len(owners))


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
    shared = (*reals, counts, table.chunks, float(p))
    kinds = (part, is_complex, norm, CHUNK, BLOCK)
    with on(device):
        if table.chunks:
            lists = (table.pointers, table.sizes, table.owners, table.firsts)
            measure[(table.chunks,)](*lists, *shared, *kinds, **LAUNCH)
        join[(len(flat),)](table.firsts, table.places, *shared, *outputs, norm, BLOCK, **LAUNCH)


def _multiply_group(
    flat: list[Any], dtype: torch.dtype, places: list[int], coefs: torch.Tensor, step: int
) -> None:
    if not flat:
        return
    part, is_complex = PARTS[dtype]
    table = table_of(flat, places, 2 if is_complex else 1)
    if table.chunks:
        lists = (table.pointers, table.sizes, table.owners, table.firsts, table.places)
        with on(coefs.device):
            multiply[(table.chunks,)](*lists, coefs, step, part, CHUNK, BLOCK, **LAUNCH)


def on(device: torch.device) -> AbstractContextManager[Any]:
    """Triton launches on the current device, which need not be that of the tensors."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()
