"""The seam between gradients and figures: one read, and one exact multiplication.

Everything above this package works on what `read` returns and writes gradients
through `scale_` alone, so a faster form is added here without a change elsewhere.
All forms keep one contract and pass one conformance suite: `reference` is plain
torch and serves every tensor, `c` is one pass over CPU tensors (`c-avx2`
and the like ask for one instruction set), `triton` one over
tensors on a GPU. "auto" gives each tensor to the fastest form that can serve it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, cast

import torch

from steadygrad.errors import KernelError
from steadygrad.kernels import auto, native, reference
from steadygrad.kernels.reference import Read

__all__ = ["Read", "read", "scale_"]


class Form(Protocol):
    """What a module must offer to be a form of the kernel."""

    def read(self, tensors: Sequence[torch.Tensor], norm_type: float) -> Read: ...

    def scale_(self, tensors: Sequence[torch.Tensor], coefs: object) -> None: ...


_FORMS: dict[str, Form] = {"auto": auto, "reference": reference, **native.FORMS}
_NAMES = (*_FORMS, "triton")


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
    return (_FORMS.get(form) or _pick(form)).read(tensors, norm_type)


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
    (_FORMS.get(form) or _pick(form)).scale_(tensors, coefs)


def _pick(form: str) -> Form:
    if form == "triton":
        return cast(Form, auto.require_triton())
    if form not in _FORMS:
        raise KernelError(f"no kernel form {form!r}; there are: {', '.join(_NAMES)}")
    return _FORMS[form]
