"""Drop-in for torch's clipping by value."""

from __future__ import annotations

import torch

from steadygrad import kernels
from steadygrad.torch.dropins.arguments import Tensors, parameters_of, require_threshold
from steadygrad.torch.gradients.pieces import any_sharded, carry_out_sums, local, summed_values
from steadygrad.torch.internals.eager import eager


def clip_grad_value_(parameters: Tensors, clip_value: float, foreach: bool | None = None) -> None:
    """Clamp every gradient element in place to ``[-clip_value, clip_value]``.

    A complex element keeps its phase: its magnitude is clamped. An infinite element is
    clamped, NaN stays NaN. On a CPU, tensors without a larger element are not written.

    Args:
        parameters: a tensor or an iterable of tensors, whose ``.grad`` are clamped.
        clip_value: the largest magnitude that an element may keep, 0 or more.
        foreach: accepted as torch's; there is one way here.

    Raises:
        UsageError: a value or parameters that would silently do nothing or harm.

    Example:
        >>> weight = torch.nn.Parameter(torch.zeros(3))
        >>> weight.grad = torch.tensor([-3.0, 0.25, float("inf")])
        >>> clip_grad_value_(weight, 0.5)
        >>> weight.grad
        tensor([-0.5000,  0.2500,  0.5000])
    """
    _clip(parameters, clip_value)


@eager
def _clip(parameters: Tensors, clip_value: float) -> None:
    limit = require_threshold(clip_value, "clip_value", "clip_grad_value_")
    params, grads = parameters_of(parameters, "clip_grad_value_")
    if any_sharded(grads):
        carry_out_sums(params)
        grads = [parameter.grad for parameter in params if parameter.grad is not None]
    on_cpu = all(grad.device.type == "cpu" for grad in grads)
    if on_cpu and grads:
        figures = kernels.read(local(grads), float("inf"))
        touched = (figures.max_abs > limit) | (figures.nonfinite > 0)
        params = [parameter for parameter, hit in zip(params, touched, strict=True) if hit]
    with torch.no_grad():
        for parameter in params:
            _clamp(summed_values(parameter), limit)


def _clamp(values: torch.Tensor, limit: float) -> None:
    if values.is_complex():
        wide = values.to(torch.complex128)
        magnitude = wide.abs()
        clamped = torch.polar(magnitude.clamp(max=limit), wide.angle())
        values.copy_(torch.where(magnitude > limit, clamped, wide))
    else:
        bound = min(limit, torch.finfo(values.dtype).max)  # float16 cannot hold every limit
        values.clamp_(-bound, bound)
