"""What the parameters of an optimizer are called, and where they sit in the forward pass.

An optimizer holds nameless tensors. Names, module types and the forward order come
from a model; without one, the place within the optimizer is the name. Hooks stand
on the modules during the first forward pass only, since each costs time at every call.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from typing import Any

import torch

from steadygrad.runlog.records import TensorInfo
from steadygrad.torch.internals.module_hooks import ModuleHooks

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
        self._hooks = ModuleHooks()
        _watch(self._hooks, _owners(model), self._order)
        weakref.finalize(self, self._hooks.remove)

    def __call__(self, parameter: torch.Tensor) -> TensorInfo | None:
        info = self._table().get(id(parameter))
        if info is None:
            return None
        name, module = info
        position = self._order.get(id(module), -1)
        return describe(parameter, name, type(module).__name__, position)

    def finish(self) -> bool:
        """Take the hook off: the order is known. False where it is off already."""
        return self._hooks.remove()

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
    info: Any = None
    if callable(names):
        info = names(parameter)
    elif names is not None:
        info = names.get(id(parameter))
    if isinstance(info, TensorInfo):
        return info
    return describe(parameter, info or place)


def _owners(model: torch.nn.Module) -> set[int]:
    """Ids of the modules that own parameters; none where a hook would be traced into a graph."""
    modules = list(model.modules())
    if any(hasattr(m, "_orig_mod") or m._compiled_call_impl is not None for m in modules):
        return set()
    return {id(m) for m in modules if next(m.parameters(recurse=False), None) is not None}


def _watch(hooks: ModuleHooks, owners: set[int], order: dict[int, int]) -> None:
    def note(module: torch.nn.Module, args: object) -> None:
        if id(module) in owners:
            order.setdefault(id(module), len(order))

    if owners:
        hooks.put(note)
