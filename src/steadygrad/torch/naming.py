"""What the parameters of an optimizer are called, and where they sit in the forward pass.

An optimizer holds nameless tensors. Names, module types and the forward order come
from a model; without one, the place within the optimizer is the name. Hooks stand
on the modules during the first forward pass only, since each costs time at every call.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.utils.hooks import RemovableHandle

from steadygrad.runlog.records import TensorInfo

Names = Mapping[int, "str | TensorInfo"] | Callable[[torch.Tensor], "str | TensorInfo | None"]
"""``{id(parameter): name}``, or a function of the parameter."""


class ModelNames:
    """Describe the parameters of one model; callable as `Names` demands.

    Args:
        model: the module whose ``named_parameters`` give the names.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Linear(2, 1))
        >>> names = ModelNames(model)
        >>> _ = model(torch.zeros(1, 2))
        >>> info = names(model[0].bias)
        >>> info.name, info.module, info.position
        ('0.bias', 'Linear', 0)
    """

    def __init__(self, model: torch.nn.Module) -> None:
        self._model = model
        self._order: dict[int, int] = {}
        self._hooks = [_watch(module, self._order) for module in _owners(model)]

    def __call__(self, parameter: torch.Tensor) -> TensorInfo | None:
        found = self._table().get(id(parameter))
        if found is None:
            return None
        name, module = found
        position = self._order.get(id(module), -1)
        return describe(parameter, name, type(module).__name__, position)

    def finish(self) -> bool:
        """Take the hooks off the modules: the order is known. False where they are off already."""
        standing = bool(self._hooks)
        while self._hooks:
            self._hooks.pop().remove()
        return standing

    def _table(self) -> dict[int, tuple[str, torch.nn.Module]]:
        # built at every call of a rare kind (first step, new parameters): modules may change
        table: dict[int, tuple[str, torch.nn.Module]] = {}
        for path, module in self._model.named_modules():
            for name, parameter in module.named_parameters(recurse=False):
                full = f"{path}.{name}" if path else name
                table.setdefault(id(parameter), (full.replace("_orig_mod.", ""), module))
        return table


def describe(
    parameter: torch.Tensor, name: str, module: str = "", position: int = -1, optimizer: int = 0
) -> TensorInfo:
    """A parameter as a run file describes it."""
    return TensorInfo(
        name=name,
        shape=tuple(parameter.shape),
        dtype=str(parameter.dtype).removeprefix("torch."),
        module=module,
        position=position,
        optimizer=optimizer,
    )


def lookup(names: Names | None, parameter: torch.Tensor, place: str) -> TensorInfo:
    """Describe one parameter, by its place within the optimizer where nothing else is known."""
    found: Any = None
    if callable(names):
        found = names(parameter)
    elif names is not None:
        found = names.get(id(parameter))
    if isinstance(found, TensorInfo):
        return found
    return describe(parameter, found or place)


def _owners(model: torch.nn.Module) -> list[torch.nn.Module]:
    if hasattr(model, "_orig_mod"):  # a hook would be traced into the compiled graph
        return []
    return [m for m in model.modules() if next(m.parameters(recurse=False), None) is not None]


def _watch(module: torch.nn.Module, order: dict[int, int]) -> RemovableHandle:
    def note(module: torch.nn.Module, args: Any) -> None:
        order.setdefault(id(module), len(order))

    return module.register_forward_pre_hook(note)
