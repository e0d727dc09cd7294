"""What the drop-ins are given, checked: no call of theirs does nothing without a word."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from operator import attrgetter
from typing import Any, cast

import torch

from steadygrad.errors import NoGradientsWarning, UsageError
from steadygrad.torch.internals.warn import warn_user

_GRAD = attrgetter("grad")

Tensors = torch.Tensor | Iterable[torch.Tensor]
"""A tensor, or any iterable of tensors, a generator included."""


def parameters_of(parameters: object, caller: str) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """The parameters that have a gradient, and their gradients.

    Args:
        parameters: a tensor or an iterable of tensors.
        caller: the function called, for messages.

    Returns:
        Those whose ``.grad`` is not None, and these; may be empty, after a warning.

    Raises:
        UsageError: something else was passed: a module, names, gradients, a tensor twice.
    """
    tensors = tensors_of(parameters, caller)
    grads = _grads_of(tensors)
    if type(None) not in set(map(type, grads)):
        return tensors, cast("list[torch.Tensor]", grads)
    pairs = [(p, g) for p, g in zip(tensors, grads, strict=True) if g is not None]
    if not pairs:
        _refuse_gradients(tensors, caller)
        warn_user(
            f"{caller}: none of the {len(tensors)} parameters has a gradient, so nothing is "
            "clipped; call it after loss.backward() and before optimizer.zero_grad()",
            NoGradientsWarning,
        )
    return [p for p, _ in pairs], [g for _, g in pairs]


def tensors_of(tensors: object, caller: str) -> list[torch.Tensor]:
    """A list of the tensors given, each once; empty after a warning.

    Raises:
        UsageError: something other than tensors, or one of them twice.
    """
    if isinstance(tensors, torch.Tensor):
        return [tensors]
    if isinstance(tensors, torch.nn.Module):
        raise UsageError(f"{caller} got a module; type {caller}(model.parameters(), ...)")
    if isinstance(tensors, Mapping) or not isinstance(tensors, Iterable):
        raise UsageError(
            f"{caller} needs a tensor or an iterable of tensors, got {type(tensors).__name__}; "
            f"type {caller}(model.parameters(), ...)"
        )
    listed = list(tensors)
    _require_tensors(listed, caller)
    if not listed:
        spent = " (an iterator gives its tensors once)" if isinstance(tensors, Iterator) else ""
        warn_user(
            f"{caller} got no tensor at all{spent}, so nothing is done; "
            f"type {caller}(model.parameters(), ...)",
            NoGradientsWarning,
        )
    if len(set(map(id, listed))) < len(listed):
        raise UsageError(
            f"{caller} got the same tensor twice, which would count and clip it twice; "
            f"type {caller}(dict.fromkeys(parameters), ...)"
        )
    return listed


def require_norm_type(norm_type: float, caller: str) -> float:
    """A norm's p as a float.

    Raises:
        UsageError: under 0.5, or not a number; says why.
    """
    p = _number(norm_type, "norm_type", caller, 2.0)
    if not p >= 0.5:
        raise UsageError(
            f"{caller}: norm_type must be at least 0.5 or inf, got {norm_type!r}: for smaller p "
            "the 'norm' of a large model is beyond any float (0 would count tensors). "
            "Type norm_type=2.0"
        )
    return p


def require_threshold(value: object, name: str, caller: str) -> float:
    """A threshold as a float.

    Raises:
        UsageError: negative, NaN or not a number; says what that would do.
    """
    threshold = _number(value, name, caller, 1.0)
    if math.isnan(threshold) or threshold < 0:
        raise UsageError(
            f"{caller}: {name} must be 0 or more, got {value!r}: a negative threshold would "
            f"reverse gradients. Type {name}=1.0"
        )
    return threshold


def _number(value: Any, name: str, caller: str, example: float) -> float:
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError):
        raise UsageError(
            f"{caller}: {name} must be a number, got {value!r}. Type {name}={example}"
        ) from None


def _require_tensors(objects: list[object], caller: str) -> None:
    if all(issubclass(kind, torch.Tensor) for kind in set(map(type, objects))):
        return
    odd = next(item for item in objects if not isinstance(item, torch.Tensor))
    hint = f"type {caller}(model.parameters(), ...)"
    if isinstance(odd, tuple):
        hint += ", without the names that named_parameters() gives"
    raise UsageError(f"{caller} needs tensors, got {type(odd).__name__} among them; {hint}")


def _grads_of(tensors: list[torch.Tensor]) -> list[torch.Tensor | None]:
    if set(map(type, tensors)) == {torch.nn.Parameter}:
        return list(map(_GRAD, tensors))  # always leaves; asking costs as much again
    return [tensor.grad if _has_place_for_grad(tensor) else None for tensor in tensors]


def _has_place_for_grad(tensor: torch.Tensor) -> bool:
    return tensor.is_leaf or tensor.retains_grad  # others warn when asked


def _refuse_gradients(tensors: list[torch.Tensor], caller: str) -> None:
    """Tell parameters whose gradient is not there yet from gradients passed in their place."""
    bare = [
        not isinstance(t, torch.nn.Parameter) and not (t.is_leaf and t.requires_grad)
        for t in tensors
    ]
    if all(bare):
        raise UsageError(
            f"{caller} got gradients in place of parameters: none of these {len(tensors)} tensors "
            f"has a .grad of its own. Type {caller}(model.parameters(), ...)"
        )
