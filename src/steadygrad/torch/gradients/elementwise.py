"""Applying methods that change single elements, and measuring what they left.

On a CPU only the tensors that the policy could change are touched; on a device, where
asking which would stop the host, all are. Each is computed in float64 and rounded once
on the way back. A sharded tensor is gathered first, since some methods take norms of its
rows; each rank then keeps its own piece.
"""

from __future__ import annotations

from typing import Any

import array_api_compat.torch as torch_namespace
import numpy as np
import torch

from steadygrad.policies import Policy
from steadygrad.stats import GradientStats
from steadygrad.torch.gradients.batch import GradientBatch
from steadygrad.torch.gradients.measuring import measure_gradients, namespace
from steadygrad.torch.gradients.outcome import Applied, compare, unit_of
from steadygrad.torch.gradients.pieces import carry_out_sums, piece_of, summed_values, whole

SECOND_MOMENTS = ("exp_avg_sq", "square_avg", "sum")
"""What torch's optimizers call a running mean (Adagrad: sum) of squared gradients."""


def apply_transform(
    policy: Policy, batch: GradientBatch, stats: GradientStats, coef: Any
) -> Applied:
    """Transform in place the tensors that an elementwise policy touches.

    Args:
        policy: whose `elementwise` is true.
        batch: the gradients.
        stats: their figures before.
        coef: what they have been scaled by already (groups may do both), ``[tensors]`` or 0-d.

    Returns:
        Coefficient and cosine over all tensors.
    """
    xp, unit = namespace(stats.norms), unit_of(stats)
    ratios = stats.norms / unit
    left, dots = ratios * coef, ratios * ratios * coef
    clipped = xp.any(coef < 1.0)
    places = touched_places(policy, stats)
    if places:
        carry_out_sums([batch.params[i] for i in places])
        inner, changed = zip(*(_rewrite(policy, batch, i, unit) for i in places), strict=True)
        after = measure_gradients(
            [batch.grads[i] for i in places],
            tuple(batch.names[i] for i in places),
            tuple(batch.sizes[i] for i in places),
            stats.norm_type,
            batch.scale,
        )
        where = xp.asarray(places, device=stats.norms.device) if xp is torch_namespace else places
        left[where], dots[where] = after.norms / unit, xp.stack(inner)
        clipped = clipped | xp.any(xp.stack(changed))
    return compare(stats, left, dots, clipped)


def touched_places(policy: Policy, stats: GradientStats) -> list[int]:
    """Which tensors a policy could change; all of an elementwise policy's on a device."""
    if isinstance(stats.norms, torch.Tensor):
        return [i for i, name in enumerate(stats.names) if policy.for_tensor(name).elementwise]
    flags = policy.touches(namespace(stats.norms), stats)
    return [index for index, hit in enumerate(np.asarray(flags)) if hit]


def _rewrite(policy: Policy, batch: GradientBatch, place: int, unit: Any) -> tuple[object, object]:
    """Rewrite one gradient; the inner product of before and after, and whether they differ."""
    stored = summed_values(batch.params[place])
    grad = batch.params[place].grad  # summing replaces a sparse one
    batch.grads[place] = stored if grad is None else grad
    before = whole(stored if grad is None or grad.layout is not torch.strided else grad.detach())
    before = before.to(torch.complex128 if stored.is_complex() else torch.float64)
    if batch.scale is not None:
        before = before / batch.scale
    own = policy.for_tensor(batch.names[place])
    if grad is not None and grad.layout is not torch.strided and own.needs:
        # a unit of such a method is more than one stored value
        after = _stored_as(grad, _transform(own, _dense(grad, batch.scale), batch, place))
    else:
        after = _transform(own, before, batch, place)
    by = unit if isinstance(unit, torch.Tensor) else float(unit)
    inner = torch.sum(_as_real(before) / by * (_as_real(after) / by))
    changed = torch.any(before != after)
    scaled = after if batch.scale is None else after * batch.scale
    stored.copy_(piece_of(scaled, grad))  # `stored` may be `before` itself
    return (inner, changed) if isinstance(unit, torch.Tensor) else (inner.numpy(), changed.numpy())


def _dense(grad: torch.Tensor, scale: Any) -> torch.Tensor:
    wide = grad.detach().to(torch.complex128 if grad.is_complex() else torch.float64).to_dense()
    return wide if scale is None else wide / scale


def _stored_as(grad: torch.Tensor, dense: torch.Tensor) -> torch.Tensor:
    """The elements of a dense tensor that a sparse one of its shape stores."""
    coordinates = grad.detach() if grad.layout is torch.sparse_coo else grad.detach().to_sparse()
    return dense[tuple(coordinates._indices())]


def _transform(own: Policy, grad: torch.Tensor, batch: GradientBatch, place: int) -> Any:
    beside: dict[str, Any] = {}
    parameter = batch.params[place]
    if "weight" in own.needs:
        beside["weight"] = whole(parameter.detach()).to(grad.dtype)
    if "second_moment" in own.needs:
        beside["second_moment"] = _second_moment(batch.state, parameter)
    if "step" in own.needs:
        beside["step"] = _steps_seen(batch.state, parameter)
    if not grad.is_complex():
        return own.transform(torch_namespace, grad, **beside)
    magnitude = grad.abs()  # methods act on the magnitude of a complex element, never its phase
    if "weight" in beside:
        beside["weight"] = beside["weight"].abs()
    shrunk = own.transform(torch_namespace, magnitude, **beside)
    return torch_namespace.where(magnitude > 0, grad * (shrunk / magnitude), grad)


def _as_real(tensor: torch.Tensor) -> torch.Tensor:
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor


def _steps_seen(state: object, parameter: torch.Tensor) -> object:
    """How many gradients the second moment has seen; None where the optimizer keeps no count."""
    return _own_state(state, parameter).get("step")


def _own_state(state: Any, parameter: torch.Tensor) -> Any:
    return state.get(parameter, {}) if state is not None else {}


def _second_moment(state: object, parameter: torch.Tensor) -> torch.Tensor | None:
    own = _own_state(state, parameter)
    moment = next((own[key] for key in SECOND_MOMENTS if key in own), None)
    return None if moment is None else whole(moment).to(torch.float64)
