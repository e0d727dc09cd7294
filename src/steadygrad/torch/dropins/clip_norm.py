"""Drop-ins for torch's clipping by the total norm: the same names and signatures, exact.

Measuring and acting stay separate: a norm never scales, and scaling accepts any norm.
On a device no figure is read by the host, unless `error_if_nonfinite` asks for it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from steadygrad.errors import NonFiniteError
from steadygrad.policies.base import coefficient
from steadygrad.torch.distributed.layout import NOWHERE, Spread
from steadygrad.torch.distributed.ownership import spread_of_some
from steadygrad.torch.dropins.arguments import (
    Tensors,
    parameters_of,
    require_norm_type,
    require_threshold,
    tensors_of,
)
from steadygrad.torch.gradients.measuring import namespace, read_whole, total_of
from steadygrad.torch.gradients.pieces import is_sharded, local, scale_each_once
from steadygrad.torch.internals.eager import eager


def clip_grad_norm_(
    parameters: Tensors,
    max_norm: float,
    norm_type: float = 2.0,
    error_if_nonfinite: bool = False,
    foreach: bool | None = None,
) -> torch.Tensor:
    """Scale gradients in place by ``min(1, max_norm / total_norm)``.

    At and below the threshold nothing is written. Gradients that hold NaN or inf are
    left exactly as they are: the norm returned tells of them.

    Args:
        parameters: a tensor or an iterable of tensors, whose ``.grad`` are clipped.
        max_norm: the threshold, 0 or more.
        norm_type: p of the norm, >= 0.5 or inf.
        error_if_nonfinite: raise before anything is written where the norm is NaN or inf.
        foreach: accepted as torch's; there is one way here.

    Returns:
        The total norm before clipping, 0-dim, float64 where the device has it.

    Raises:
        UsageError: a threshold, a norm or parameters that would silently do nothing or harm.
        NonFiniteError: a RuntimeError, if `error_if_nonfinite` asks for it.

    Example:
        >>> weight = torch.nn.Parameter(torch.zeros(2))
        >>> weight.grad = torch.tensor([3.0, 4.0])
        >>> clip_grad_norm_([weight], max_norm=1.0)
        tensor(5., dtype=torch.float64)
        >>> weight.grad
        tensor([0.6000, 0.8000])
    """
    return _clip(parameters, max_norm, norm_type, error_if_nonfinite)


def get_total_norm(
    tensors: Tensors,
    norm_type: float = 2.0,
    error_if_nonfinite: bool = False,
    foreach: bool | None = None,
) -> torch.Tensor:
    """The norm of tensors taken as one vector.

    Args:
        tensors: a tensor or an iterable of tensors (gradients, not parameters); a DTensor
            counts as a whole.
        norm_type: p of the norm, >= 0.5 or inf.
        error_if_nonfinite: raise where the norm is NaN or inf.
        foreach: accepted as torch's; there is one way here.

    Returns:
        The norm, 0-dim, float64 where the device has it; the same on every rank.

    Raises:
        UsageError: no norm, or not tensors.
        NonFiniteError: a RuntimeError, if `error_if_nonfinite` asks for it.

    Example:
        >>> get_total_norm([torch.full((2,), 3e38), torch.zeros(1)]).item() > 3.4e38
        True
    """
    return _norm(tensors, norm_type, error_if_nonfinite)


def clip_grads_with_norm_(
    parameters: Tensors,
    max_norm: float,
    total_norm: torch.Tensor | float,
    foreach: bool | None = None,
) -> None:
    """Scale gradients in place by ``min(1, max_norm / total_norm)`` of a norm measured before.

    Args:
        parameters: a tensor or an iterable of tensors, whose ``.grad`` are scaled.
        max_norm: the threshold, 0 or more.
        total_norm: the norm, 0-dim or a number; where it is not finite, nothing is written.
        foreach: accepted as torch's; there is one way here.

    Raises:
        UsageError: a threshold or parameters that would silently do nothing or harm.

    Example:
        >>> weight = torch.nn.Parameter(torch.zeros(2))
        >>> weight.grad = torch.tensor([3.0, 4.0])
        >>> clip_grads_with_norm_(weight, max_norm=1.0, total_norm=torch.tensor(10.0))
        >>> weight.grad
        tensor([0.3000, 0.4000])
    """
    _clip_with(parameters, max_norm, total_norm)


@eager
def _clip(
    parameters: Tensors, max_norm: float, norm_type: float, error_if_nonfinite: bool
) -> torch.Tensor:
    threshold = require_threshold(max_norm, "max_norm", "clip_grad_norm_")
    p = require_norm_type(norm_type, "clip_grad_norm_")
    params, grads = parameters_of(parameters, "clip_grad_norm_")
    norm = _total(grads, p, error_if_nonfinite, *spread_of_some(params))
    _scale(grads, threshold, norm)
    return torch.as_tensor(norm)


@eager
def _norm(tensors: Tensors, norm_type: float, error_if_nonfinite: bool) -> torch.Tensor:
    p = require_norm_type(norm_type, "get_total_norm")
    detached = [tensor.detach() for tensor in tensors_of(tensors, "get_total_norm")]
    return torch.as_tensor(_total(detached, p, error_if_nonfinite))


@eager
def _clip_with(parameters: Tensors, max_norm: float, total_norm: torch.Tensor | float) -> None:
    threshold = require_threshold(max_norm, "max_norm", "clip_grads_with_norm_")
    _, grads = parameters_of(parameters, "clip_grads_with_norm_")
    if is_sharded(total_norm):
        total_norm = total_norm.full_tensor()  # type: ignore[union-attr]
    on_device = isinstance(total_norm, torch.Tensor) and total_norm.device.type != "cpu"
    _scale(grads, threshold, total_norm if on_device else np.float64(float(total_norm)))


def _total(
    grads: Sequence[torch.Tensor],
    p: float,
    error_if_nonfinite: bool,
    spread: Spread = NOWHERE,
    present: list[int] | None = None,
) -> Any:
    figures = read_whole(grads, p, spread, present)
    norm = total_of(figures.norms, p) if figures.total is None else figures.total
    if error_if_nonfinite and not math.isfinite(norm):
        raise NonFiniteError(
            f"the total norm of order {p} of the gradients is {float(norm)}, so they cannot be "
            "clipped; nothing was changed. To go on regardless, type error_if_nonfinite=False"
        )
    return norm


def _scale(grads: Sequence[torch.Tensor], max_norm: float, norm: Any) -> None:
    coef = coefficient(namespace(norm), norm, max_norm)
    if isinstance(coef, torch.Tensor) or coef < 1.0:
        scale_each_once(local(grads), coef)
