"""The form that picks: C or Triton for what they can serve, plain torch for the rest.

The usual list, all dense and on the CPU, costs one call and no look at any tensor
from Python. A list that C refuses is split, or goes to Triton where it is on a GPU.
Triton is imported for the first tensor on a GPU, not before.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import attrgetter
from typing import Any, Protocol, cast

import numpy as np
import torch

from steadygrad.errors import KernelError
from steadygrad.kernels import native, reference
from steadygrad.kernels.reference import Read


class Form(Protocol):
    """What a module must offer to be a form of the kernel."""

    def read(self, tensors: Sequence[torch.Tensor], norm_type: float) -> Read: ...

    def scale_(self, tensors: Sequence[torch.Tensor], coefs: object) -> None: ...


class _Sparse(native.Stamped):
    """Whether this process has sparse tensors: C takes a millisecond to refuse one."""

    def __init__(self) -> None:
        self.met = False


_SPARSE = _Sparse()
_GRAD = attrgetter("grad")
_LAYOUT, _STRIDED = attrgetter("layout"), {torch.strided}
_FORMS: dict[str, Form] = {"reference": reference, **native.FORMS}


def read(tensors: Sequence[torch.Tensor], norm_type: float = 2.0, *, form: str = "auto") -> Read:
    """Measure each tensor; nothing is written.

    Args:
        tensors: floating-point or complex tensors of any layout, on any devices.
        norm_type: p of the norms, >= 0.5 or inf; not checked here.
        form: ``"auto"`` or the name of one form.

    Returns:
        The figures, one element a tensor: NumPy arrays where every tensor is on the
        CPU, else torch tensors on the first device that is not.

    Raises:
        KernelError: the form asked for by name cannot serve these tensors.

    Example:
        >>> import torch
        >>> figures = read([torch.tensor([3.0, 4.0]), torch.tensor([0.0, float("inf")])])
        >>> figures.norms.tolist(), figures.nonfinite.tolist(), figures.zeros.tolist()
        ([5.0, inf], [0, 1], [0, 1])
    """
    if form != "auto":
        return _pick(form).read(tensors, norm_type)
    sparse = _SPARSE.met and _any_sparse(tensors)
    if native.AVAILABLE and not sparse:
        figures, refused = native.try_read(list(tensors), norm_type)
        if refused == native.ALL_SERVED:
            return figures
        sparse = _any_sparse(tensors)
        _SPARSE.met = _SPARSE.met or sparse
    if any(tensor.device.type != "cpu" for tensor in tensors):
        return _read_device(tensors, norm_type)
    if not native.AVAILABLE:
        return reference.read(tensors, norm_type)
    return _read_stored(tensors, norm_type) if sparse else _read_each(tensors, norm_type)


def scale_(tensors: Sequence[torch.Tensor], coefs: object, *, form: str = "auto") -> None:
    """Multiply each tensor in place: the product in float64, rounded once in its dtype.

    A tensor whose coefficient is 1 is not written (on a device: keeps its bits).

    Args:
        tensors: floating-point or complex tensors of any layout that can be written.
        coefs: one coefficient for all (a number or 0-d) or one a tensor: NumPy, or a
            torch tensor, which is not read on the host where it lives on a device.
        form: ``"auto"`` or the name of one form.

    Raises:
        KernelError: the form asked for by name cannot serve these tensors.

    Example:
        >>> import torch
        >>> grad = torch.tensor([3.0, 4.0])
        >>> scale_([grad], 0.5)
        >>> grad
        tensor([1.5000, 2.0000])
    """
    if form != "auto":
        _pick(form).scale_(tensors, coefs)
        return
    if isinstance(coefs, torch.Tensor) and coefs.device.type != "cpu":
        _scale_device(tensors, coefs)
        return
    each = native.each_coef(coefs, len(tensors))
    if native.AVAILABLE and native.try_scale(list(tensors), each) == native.ALL_SERVED:
        return
    plain, odd = _told_apart(tensors)
    if odd:  # first: where one of them cannot be written, nothing is
        reference.scale_([tensors[i] for i in odd], each[odd])
    for index in plain:
        coef = each[index : index + 1]
        if not native.AVAILABLE or native.try_scale([tensors[index]], coef) != native.ALL_SERVED:
            reference.scale_([tensors[index]], coef)


def _pick(form: str) -> Form:
    if form == "triton":
        return cast("Form", require_triton())
    if form not in _FORMS:
        names = ("auto", *_FORMS, "triton")
        raise KernelError(f"no kernel form {form!r}; there are: {', '.join(names)}")
    return _FORMS[form]


def triton_form() -> Any:
    """The Triton form, or None where Triton is not installed."""
    try:
        from steadygrad.kernels import triton_form as form
    except ImportError:
        return None
    return form


def require_triton() -> Any:
    """The Triton form, or an error that says what to type."""
    form = triton_form()
    if form is None:
        raise KernelError(
            'form "triton" needs Triton, which is not installed. Use form="auto", or type: '
            "pip install triton"
        )
    return form


def _any_sparse(tensors: Sequence[torch.Tensor]) -> bool:
    return not set(map(_LAYOUT, tensors)) <= _STRIDED


def seal(tensors: list[torch.Tensor]) -> bytearray | None:
    """Measure 2-norms of all or none on the host, and leave the figures as C wrote them.

    Args:
        tensors: what is to be measured, sparse ones too; None among them is refused.

    Returns:
        What `native.opened` opens; None where C does not serve one of the tensors, or was not
        built.
    """
    if not _SPARSE.met:
        figures = native.try_seal(tensors)
        if figures is not None or not native.AVAILABLE:
            return figures
    dense: list[torch.Tensor] = []
    not_stored: dict[int, int] = {}
    for place, tensor in enumerate(tensors):
        if tensor is not None and tensor.layout is not torch.strided and tensor.is_cpu:
            part = _stored(tensor)
            not_stored[place] = tensor.numel() - part.numel()
            dense.append(part)
        else:
            dense.append(tensor)
    if not_stored:
        _SPARSE.met = True
    elif not _SPARSE.met:
        return None
    figures = native.try_seal(dense)
    if figures is not None and not_stored:
        counts, zeros = memoryview(figures).cast("q"), 3 * len(tensors)
        for place, missing in not_stored.items():
            counts[zeros + place] += missing
    return figures


def seal_gradients(parameters: list[torch.Tensor]) -> bytearray | None:
    """`seal` of the gradients of parameters, without a look at any of them from Python.

    Args:
        parameters: theirs; one without a gradient is refused.

    Returns:
        As `seal`.
    """
    figures = native.try_seal_gradients(parameters, _SPARSE.met)
    return seal(list(map(_GRAD, parameters))) if figures is None else figures


def sparse_seen() -> tuple[object, str, bool]:
    """Where it stands whether this process has sparse tensors: an owner, an attribute, its value.

    Example:
        >>> owner, name, seen = sparse_seen()
        >>> getattr(owner, name) is seen
        True
    """
    return _SPARSE, "met", _SPARSE.met


def _read_stored(tensors: Sequence[torch.Tensor], p: float) -> Read:
    """A list with sparse tensors, in one call: C reads the elements that they store."""
    dense = [_stored(tensor) for tensor in tensors]
    figures, refused = native.try_read(dense, p)
    if refused != native.ALL_SERVED:
        figures = _read_each(dense, p)
    return figures._replace(zeros=figures.zeros + np.array(_not_stored(tensors, dense), np.int64))


def _not_stored(tensors: Sequence[torch.Tensor], dense: Sequence[torch.Tensor]) -> list[int]:
    """How many elements of each are not stored, which are zeros."""
    pairs = zip(tensors, dense, strict=True)
    return [whole.numel() - part.numel() for whole, part in pairs]


def _stored(tensor: torch.Tensor) -> torch.Tensor:
    """What `reference.stored_values` gives, duplicates added up in C."""
    if tensor.layout is torch.sparse_coo and not tensor.is_coalesced():
        summed = native.summed_rows(tensor)
        if summed is not None:
            return summed
    return reference.stored_values(tensor)


def _read_each(tensors: Sequence[torch.Tensor], p: float) -> Read:
    rows = []
    for tensor in tensors:
        figures, refused = native.try_read([tensor], p)
        rows.append(figures if refused == native.ALL_SERVED else reference.read([tensor], p))
    return Read(
        np.concatenate([row.norms for row in rows]),
        np.concatenate([row.max_abs for row in rows]),
        np.concatenate([row.nonfinite for row in rows]),
        np.concatenate([row.zeros for row in rows]),
    )


def _told_apart(tensors: Sequence[torch.Tensor]) -> tuple[list[int], list[int]]:
    """Positions of ordinary tensors, and of those whose kind or memory may refuse to be written."""
    odd = [
        i
        for i, tensor in enumerate(tensors)
        if type(tensor) not in (torch.Tensor, torch.nn.Parameter)
        or tensor.layout is not torch.strided
        or 0 in tensor.stride()
    ]
    return sorted(set(range(len(tensors))) - set(odd)), odd


def _split(tensors: Sequence[torch.Tensor], device: torch.device) -> tuple[list[int], list[int]]:
    """Positions that Triton serves on this device, and the others."""
    form = triton_form()
    served = [
        i
        for i, tensor in enumerate(tensors)
        if form is not None and tensor.device == device and form.serves(tensor)
    ]
    return served, sorted(set(range(len(tensors))) - set(served))


def _read_device(tensors: Sequence[torch.Tensor], p: float) -> Read:
    home = next(tensor.device for tensor in tensors if tensor.device.type != "cpu")
    served, others = _split(tensors, home)
    if not others:
        return cast(Read, require_triton().read(tensors, p))
    rows: list[Any] = [None] * len(tensors)
    if served:
        figures = require_triton().read([tensors[i] for i in served], p)
        for row, i in enumerate(served):
            rows[i] = [column[row] for column in columns_of(figures)]
    for i in others:
        figures = reference.read([tensors[i]], p)
        rows[i] = [_on(column[0], home) for column in columns_of(figures)]
    return Read(*(torch.stack(column) for column in zip(*rows, strict=True)))


def columns_of(figures: Read) -> tuple[Any, Any, Any, Any]:
    """The four arrays of a `Read`, in its order."""
    return figures[:4]


def _on(value: object, device: torch.device) -> torch.Tensor:
    return torch.as_tensor(value).to(device, non_blocking=True)


def _scale_device(tensors: Sequence[torch.Tensor], coefs: torch.Tensor) -> None:
    served, others = _split(tensors, coefs.device)
    for form, places in ((triton_form(), served), (reference, others)):
        if places:
            chosen = coefs if coefs.ndim == 0 else torch.stack([coefs[i] for i in places])
            form.scale_([tensors[i] for i in places], chosen if others else coefs)
