"""All that a training holds, in memory and as one portable object for a file."""

from __future__ import annotations

import copy
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from steadygrad.torch.recovery.beside_state import load_in_place, saved_beside
from steadygrad.torch.recovery.generators import Generators
from steadygrad.torch.recovery.shards import laid_out_alike
from steadygrad.torch.step.inner import inner_optimizers
from steadygrad.torch.step.snapshot import Snapshot

_HANDED = ("grad_scale", "found_inf")
"""Attributes of an optimizer that belong to a single step."""


@dataclass(frozen=True)
class TrainingState:
    """A training before one of its steps.

    Attributes:
        weights: parameters, optimizer state and hyper-parameters.
        buffers: as `Buffers.copies` gives them.
        partners: states of schedulers, scaler and what was named.
        policy: the clip policy's state.
        generators: the random generators before the step's batch was drawn; None where not noted.
        batch: number of the batch that the step used.
    """

    weights: Snapshot
    buffers: list[torch.Tensor | None]
    partners: dict[str, dict[str, object]]
    policy: dict[str, torch.Tensor]
    generators: Generators | None
    batch: int


def in_host_memory(tensor: torch.Tensor) -> torch.Tensor:
    """A copy in host memory; from a GPU it arrives while the training goes on."""
    if tensor.device.type != "cuda" or type(tensor) is not torch.Tensor:
        return tensor.clone()
    host = torch.empty_like(tensor, device="cpu", pin_memory=True)
    return host.copy_(tensor, non_blocking=True)


def restore_weights(optimizer: torch.optim.Optimizer, weights: Snapshot) -> None:
    """Put parameters, state and hyper-parameters back in place."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.synchronize()  # a copy to the host may still be under way
    handed = {key: vars(optimizer)[key] for key in _HANDED if key in vars(optimizer)}
    weights.restore()
    for key in _HANDED:
        vars(optimizer).pop(key, None)
    vars(optimizer).update(handed)


def state_tensors(optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    """The tensors of an optimizer's state."""
    return [
        value
        for state in optimizer.state.values()
        if isinstance(state, dict)
        for value in state.values()
        if isinstance(value, torch.Tensor)
    ]


def tensors_of(value: object) -> Iterator[torch.Tensor]:
    """The tensors in nested dicts, lists and tuples that can hold a NaN.

    Example:
        >>> [each.tolist() for each in tensors_of({"ema": {"w": torch.ones(2)}, "step": 3})]
        [[1.0, 1.0]]
    """
    if isinstance(value, torch.Tensor):
        if value.is_floating_point() or value.is_complex():
            yield value
    elif isinstance(value, (Mapping, list, tuple)):
        for each in value.values() if isinstance(value, Mapping) else value:
            yield from tensors_of(each)


def portable(
    optimizer: torch.optim.Optimizer,
    names: Sequence[str],
    params: Sequence[torch.Tensor],
    snapshot: Snapshot,
) -> dict[str, object]:
    """Weights and optimizer state by name, in host memory: the copies of a snapshot themselves."""
    weights = {name: _as_copied(p, snapshot) for name, p in zip(names, params, strict=True)}
    return {
        "weights": weights,
        "optimizer": _as_copied(optimizer.state_dict(), snapshot),
        "beside": _as_copied(saved_beside(optimizer), snapshot),
    }


def _as_copied(value: object, snapshot: Snapshot) -> object:
    if isinstance(value, torch.Tensor):
        content = snapshot.copy_of(value)
        return value.detach().cpu().clone() if content is None else content
    if isinstance(value, dict):
        return {key: _as_copied(each, snapshot) for key, each in value.items()}
    if isinstance(value, list):
        return [_as_copied(each, snapshot) for each in value]
    if type(value) is tuple:
        return tuple(_as_copied(each, snapshot) for each in value)
    return copy.deepcopy(value)


def load_portable(
    optimizer: torch.optim.Optimizer,
    names: Sequence[str],
    params: Sequence[torch.Tensor],
    saved: Mapping[str, Any],
) -> list[str]:
    """Put back what `portable` gave.

    Returns:
        Names of weights that only one side has, or that differ in shape or in how they are split.
    """
    here = dict(zip(names, params, strict=True))
    weights: dict[str, torch.Tensor] = saved["weights"]
    odd = sorted(weights.keys() ^ here.keys())
    odd += [n for n in weights.keys() & here.keys() if not laid_out_alike(weights[n], here[n])]
    if odd:
        return odd
    with torch.no_grad():
        for name, parameter in here.items():
            parameter.copy_(weights[name])
    load_in_place([optimizer, *inner_optimizers(optimizer)], optimizer, saved["optimizer"])
    return []


def packed(content: Mapping[str, object]) -> bytes:
    """As bytes."""
    buffer = io.BytesIO()
    torch.save(dict(content), buffer)
    return buffer.getvalue()


def unpacked(content: bytes) -> dict[str, Any]:
    """What `packed` was given; no code in it is run.

    Raises:
        ValueError: it is something else, or holds objects that only code can make.
    """
    try:
        loaded = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # of many kinds; torch's words advise to run what the file brings
        raise ValueError(f"more than plain values ({type(error).__name__})") from None
    if not isinstance(loaded, dict):
        raise ValueError(f"a {type(loaded).__name__} in place of a dict")
    return loaded
