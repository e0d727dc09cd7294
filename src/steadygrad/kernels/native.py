"""The C form: one call reads or scales any number of CPU tensors.

Tensors are described to C by torch itself, through DLPack's C exchange table, at each
call: there is no cache that could go stale. A torch without that table (before 2.10)
is served by a table of pointers built here. What C cannot serve (other devices,
sparse, subclasses that wrap other tensors, overlapping memory to be written) is
refused by index, so that the caller can send it elsewhere.
"""

from __future__ import annotations

import math
import struct
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import attrgetter, is_
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from steadygrad import extensions
from steadygrad.errors import KernelError
from steadygrad.kernels.reference import Read

_read: Any = extensions.load(extensions.READ)

DTYPES = {
    torch.float32: 0,
    torch.float64: 1,
    torch.float16: 2,
    torch.bfloat16: 3,
    torch.complex64: 4,
    torch.complex128: 5,
}
COMPLEX = 4  # less of a complex dtype's number is that of its parts
ALL_SERVED = -1
# struct sg_tensor of core.h
ROW = np.dtype(
    [
        ("data", "u8"),
        ("size", "i8"),
        ("shape", "u8"),
        ("strides", "u8"),
        ("rank", "i4"),
        ("type", "i4"),
    ]
)
_GRAD, _VERSION = attrgetter("grad"), attrgetter("_version")
_EXCHANGE = getattr(torch.Tensor, "__dlpack_c_exchange_api__", None)
_NOTHING_READ = Read(*(np.empty(0) for _ in range(4)))
_SETS: list[str] = _read.instruction_sets() if _read else []


AVAILABLE = _read is not None
"""Whether the extension was built, from this version."""

_DESCRIBED = AVAILABLE and _EXCHANGE is not None
if _DESCRIBED:
    _read.bind(_EXCHANGE, torch.Tensor, torch.nn.Parameter, torch.get_num_threads)


def instruction_sets() -> list[str]:
    """The loops that this processor can run, best first.

    Example:
        >>> "portable" in instruction_sets() or not AVAILABLE
        True
    """
    return list(_SETS)


@dataclass(frozen=True)
class CForm:
    """The C form with one instruction set, or with the best that the processor has."""

    use: str | None = None

    def read(self, tensors: Sequence[torch.Tensor], norm_type: float) -> Read:
        """Measure; see `steadygrad.kernels.read`."""
        figures, refused = try_read(list(tensors), norm_type, use=self.use)
        if refused != ALL_SERVED:
            raise refusal(tensors[refused])
        return figures

    def scale_(self, tensors: Sequence[torch.Tensor], coefs: object) -> None:
        """Multiply; see `steadygrad.kernels.scale_`."""
        if isinstance(coefs, torch.Tensor) and coefs.device.type != "cpu":
            raise KernelError(f'form "c" takes coefficients on the CPU; got {coefs.device}')
        refused = try_scale(list(tensors), each_coef(coefs, len(tensors)), use=self.use)
        if refused != ALL_SERVED:
            raise refusal(tensors[refused])


FORMS: dict[str, CForm] = {"c": CForm(), **{f"c-{name}": CForm(name) for name in _SETS}}


def try_read(
    tensors: list[torch.Tensor], p: float, *, threads: int | None = None, use: str | None = None
) -> tuple[Read, int]:
    """Measure all or none; the index of the first tensor refused, or `ALL_SERVED`."""
    rows = _rows(tensors, p, threads or torch.get_num_threads(), use or best())
    return (_NOTHING_READ, rows) if isinstance(rows, int) else (opened(rows), ALL_SERVED)


def try_seal(tensors: list[Any]) -> bytearray | None:
    """Measure 2-norms of all or none, and leave the figures as C wrote them: see `opened`.

    Args:
        tensors: what is to be measured; None among them is refused too.

    Returns:
        The figures; None where C does not serve one of the tensors, or was not built.
    """
    if not AVAILABLE:
        return None
    rows = _rows(tensors, 2.0, torch.get_num_threads(), _SETS[0])
    return None if isinstance(rows, int) else rows


def _seal_gradients(parameters: list[torch.Tensor], any_sparse: bool) -> bytearray | None:
    """`try_seal` of the gradients of parameters.

    Args:
        parameters: theirs; one without a gradient is refused.
        any_sparse: some may be sparse, of which C then takes what they store. To find one that is
            not expected takes a millisecond.
    """
    return try_seal([parameter.grad for parameter in parameters])


try_seal_gradients: Callable[[list[torch.Tensor], bool], bytearray | None]
try_seal_gradients = _read.read_gradients if _DESCRIBED else _seal_gradients


def _hold(groups: list[dict[str, Any]], parameters: list[torch.Tensor]) -> bool:
    """Whether the groups of an optimizer hold these very parameters, in this order.

    Example:
        >>> one, other = torch.ones(2), torch.ones(2)
        >>> groups = [{"params": [one]}, {"params": [other]}]
        >>> holds(groups, [one, other]), holds(groups, [one])
        (True, False)
    """
    theirs = [parameter for group in groups for parameter in group["params"]]
    return len(theirs) == len(parameters) and all(map(is_, theirs, parameters))


GATE: Any = getattr(_read, "Gate", None)
"""``GATE(function, watched, watchers)`` calls the first; the second where one of the third gives
neither None nor 0."""

USUAL_CLIP: Any = getattr(_read, "UsualClip", None)
"""What follows a clip call that C has begun to its end: see `steadygrad.torch.internals.quiet`."""

if TYPE_CHECKING or not hasattr(_read, "Stamped"):

    class Stamped:
        """An object whose changes C counts, where terms rest on them."""

else:
    Stamped = _read.Stamped

Same = tuple[tuple[object, str, object], ...]
"""Owners, names of attributes, and the very objects that these are. Where an owner is `Stamped`, C
looks at its attributes again after a change only."""

Empty = tuple[tuple[object, str], ...]
"""Owners, and names of attributes in which there is nothing."""

QUIET: dict[str, Any] = {
    kind: getattr(_read, kind)
    for kind in ("QuietCall", "QuietStep", "QuietPass", "QuietGrad", "QuietClip")
    if hasattr(_read, kind)
}
"""Types of C, made as ``(otherwise, prepare, fault)``: see `steadygrad.torch.internals.quiet`."""

holds: Callable[[list[dict[str, Any]], list[torch.Tensor]], bool] = getattr(_read, "holds", _hold)


def _are_those(
    parameters: list[torch.Tensor],
    references: list[weakref.ref[torch.Tensor]],
    versions: list[int],
) -> bool:
    """Whether the gradients of parameters are those referred to, at these versions.

    Example:
        >>> weight = torch.zeros(2, requires_grad=True)
        >>> weight.grad = torch.ones(2)
        >>> known = [weight], [weakref.ref(weight.grad)], [weight.grad._version]
        >>> are_those(*known), weight.grad.add_(1) is None, are_those(*known)
        (True, False, False)
    """
    grads = list(map(_GRAD, parameters))
    if len(grads) != len(references) or type(None) in map(type, grads):
        return False  # a reference to what is gone gives None
    same = all(map(is_, [reference() for reference in references], grads))
    return same and versions == list(map(_VERSION, grads))


are_those: Callable[[list[torch.Tensor], list[weakref.ref[torch.Tensor]], list[int]], bool] = (
    getattr(_read, "are_those", _are_those)
)


def opened(rows: bytearray) -> Read:
    """The figures that C has written, as arrays that share their memory."""
    figures, counts = np.frombuffer(rows, np.float64), np.frombuffer(rows, np.int64)
    n = len(figures) // 4
    norms, max_abs = figures[:n], figures[n : 2 * n]
    return Read(norms, max_abs, counts[2 * n : 3 * n], counts[3 * n : -1], figures[-1])


def total_of(rows: bytearray) -> float:
    """The norm of all tensors together, from figures that C has written."""
    total: float = struct.unpack_from("d", rows, len(rows) - 8)[0]
    return total


def _rows(tensors: list[torch.Tensor], p: float, threads: int, use: str) -> bytearray | int:
    """The figures as C writes them, or the index of the first tensor that it refuses."""
    rows: bytearray | int
    if _DESCRIBED:
        rows = _read.read_objects(tensors, p, threads, use)
        return rows
    table, _alive, rows = describe(tensors, writing=False)
    if rows == ALL_SERVED:
        rows = _read.read_table(table.ctypes.data, len(tensors), p, threads, use)
    return rows


def try_scale(
    tensors: list[torch.Tensor],
    coefs: npt.NDArray[np.float64],
    *,
    threads: int | None = None,
    use: str | None = None,
) -> int:
    """Multiply all or none; the index of the first tensor refused, or `ALL_SERVED`."""
    written = np.flatnonzero(coefs != 1.0)
    if written.size == 0:
        return ALL_SERVED
    threads = threads or torch.get_num_threads()
    use = use or best()
    where = coefs.ctypes.data
    if _DESCRIBED:
        refused = _read.scale_objects(tensors, where, threads, use)
    else:
        table, _alive, refused = describe(tensors, writing=True)
        if refused == ALL_SERVED:
            _read.scale_table(table.ctypes.data, len(tensors), where, threads, use)
    if refused == ALL_SERVED:
        # autograd must know of a write that it did not see
        every = written.size == len(tensors)
        changed = tensors if every else [tensors[i] for i in written.tolist()]
        torch.autograd.graph.increment_version(changed)
    return int(refused)


def _number(value: object) -> float | None:
    """The only element of a real tensor on the CPU; None for what C does not serve.

    Args:
        value: anything.

    Example:
        >>> try_number(torch.tensor(0.5)) in (0.5, None), try_number(torch.ones(2)) is None
        (True, True)
    """
    return None


# C's own function: a call of ours around it costs as much as it does
try_number: Callable[[object], float | None] = _read.number if _DESCRIBED else _number


def try_units(value: object, axis: int, most: int) -> tuple[float, float] | None:
    """What is sampled of an activation.

    Args:
        value: the activation.
        axis: of its units; every other one counts as rows.
        most: elements of which saturation is taken, about, of evenly spread rows.

    Returns:
        The share of units that are 0 in every row, and the share of elements at the flat ends of a
        tanh or a sigmoid: 0 for what is neither, by its range. None for what C does not serve:
        it reads float32 on the CPU, contiguous.

    Example:
        >>> units = torch.tensor([[0.0, 1.0, 0.5], [0.0, 0.2, 0.3]])
        >>> try_units(units, -1, 4096) in [(1 / 3, 0.5), None]
        True
    """
    if not _DESCRIBED:
        return None
    figures: tuple[float, float] | None = _read.units(value, axis, most)
    return figures


def try_deviation(value: object, most: int) -> float | None:
    """The standard deviation, by n - 1, of about `most` elements of evenly spread rows.

    Args:
        value: a tensor.
        most: elements, about.

    Returns:
        It; None for what C does not serve, as `try_units` has it, and for a single element.
    """
    if not _DESCRIBED:
        return None
    figure: float | None = _read.deviation(value, most)
    return figure


def try_parts(tensors: list[torch.Tensor], most: int) -> npt.NDArray[np.float64] | None:
    """At most so many elements of each tensor, evenly spread, side by side: a copy.

    Args:
        tensors: real ones.
        most: elements of each.

    Returns:
        Every n-th element of each, with the least n that leaves no more; None where C does not
        serve one of the tensors.

    Example:
        >>> parts = try_parts([torch.arange(5.0), torch.ones(1)], 3)
        >>> parts is None or parts.tolist()
        [0.0, 2.0, 4.0, 1.0]
    """
    if not _DESCRIBED:
        return None
    taken = _read.take_objects(tensors, most)
    return None if isinstance(taken, int) else np.frombuffer(taken, np.float64)


def summed_rows(sparse: torch.Tensor) -> torch.Tensor | None:
    """What a COO tensor stores, elements of the same place added up in float64.

    Args:
        sparse: of any layout and device; it stays as it is, not coalesced.

    Returns:
        ``[places, ...]``, float64 or complex128; None for what C does not serve.

    Example:
        >>> twice = torch.sparse_coo_tensor([[3, 3]], [1.0, 2.0], (5,), check_invariants=True)
        >>> summed_rows(twice)
        tensor([[3.]], dtype=torch.float64)
    """
    if not AVAILABLE or sparse.layout is not torch.sparse_coo or not sparse.is_cpu:
        return None
    if sparse.requires_grad:
        sparse = sparse.detach()
    values, keys = sparse._values(), _keys(sparse)
    kind = DTYPES.get(values.dtype)
    if keys is None or kind is None or not values.numel():
        return None
    is_complex = kind >= COMPLEX
    if is_complex:
        values, kind = torch.view_as_real(values.resolve_conj()), kind - COMPLEX
    values = values.contiguous()
    entries = keys.shape[-1]
    width = values.numel() // entries
    rows = torch.empty((entries, width), dtype=torch.float64)
    where, out = values.data_ptr(), rows.data_ptr()
    count = _read.sum_rows(keys.data_ptr(), entries, where, width, kind, out)
    rows = rows[:count]
    return torch.view_as_complex(rows.view(count, -1, 2)) if is_complex else rows


def _keys(sparse: torch.Tensor) -> torch.Tensor | None:
    """The place of each entry as one number; None where 64 bits do not hold all places."""
    indices = sparse._indices()
    sizes = sparse.shape[: sparse.sparse_dim()]
    if len(sizes) == 1:
        return indices.contiguous()
    if not sizes or math.prod(sizes) >= 1 << 63:
        return None
    keys = indices[0]
    for place, size in zip(indices[1:], sizes[1:], strict=True):
        keys = keys * size + place
    return keys


def each_coef(coefs: object, n: int) -> npt.NDArray[np.float64]:
    """One float64 coefficient a tensor, contiguous."""
    return np.ascontiguousarray(np.broadcast_to(np.asarray(coefs, np.float64), (n,)))


def best() -> str:
    """The instruction set to use; an error where the extension is missing."""
    if not _SETS:
        raise KernelError(
            f'form "c" is {extensions.state(extensions.READ)} here. Use form="auto", or install '
            f"a C compiler and type: {extensions.REBUILD}"
        )
    return _SETS[0]


def refusal(tensor: torch.Tensor) -> KernelError:
    """What to say of a tensor that C cannot serve."""
    return KernelError(
        'form "c" serves dense, floating-point or complex torch tensors on the CPU that do not '
        f"overlap where they are written; got {type(tensor).__name__} of dtype {tensor.dtype}, "
        f'layout {tensor.layout}, on {tensor.device}. Use form="auto"'
    )


def describe(
    tensors: Sequence[torch.Tensor], *, writing: bool
) -> tuple[npt.NDArray[Any], list[npt.NDArray[np.int64]], int]:
    """The tensors as rows for C, the arrays that the rows point into, and who is refused."""
    table = np.zeros(len(tensors), ROW)
    layouts: list[npt.NDArray[np.int64]] = []
    for index, tensor in enumerate(tensors):
        if not _served(tensor, writing):
            return table, layouts, index
        flat = tensor.is_contiguous() or _dense(tensor)
        row = table[index]
        row["data"], row["size"], row["type"] = (
            tensor.data_ptr(),
            tensor.numel(),
            DTYPES[tensor.dtype],
        )
        if not flat:
            layout = np.array([tensor.shape, tensor.stride()], np.int64)
            row["shape"], row["strides"] = layout[0].ctypes.data, layout[1].ctypes.data
            row["rank"] = tensor.ndim
            layouts.append(layout)
    return table, layouts, ALL_SERVED


def _served(tensor: torch.Tensor, writing: bool) -> bool:
    return (
        type(tensor) in (torch.Tensor, torch.nn.Parameter)
        and tensor.device.type == "cpu"
        and tensor.layout is torch.strided
        and tensor.dtype in DTYPES
        and not (writing and _overlaps(tensor))
    )


def _steps(tensor: torch.Tensor) -> list[tuple[int, int]]:
    pairs = zip(tensor.stride(), tensor.shape, strict=True)
    return sorted((stride, size) for stride, size in pairs if size != 1)


def _dense(tensor: torch.Tensor) -> bool:
    """Whether the elements fill one stretch of memory, in whatever order."""
    covered = 1
    for stride, size in _steps(tensor):
        if stride != covered:
            return False
        covered *= size
    return True


def _overlaps(tensor: torch.Tensor) -> bool:
    covered = 1
    for stride, size in _steps(tensor) if tensor.numel() else []:
        if stride < covered:
            return True
        covered += (size - 1) * stride
    return False
