"""Find the script's modules and optimizers, and give its parameters names.

One pass over the garbage collector's objects, at the first backward. It costs tens of
milliseconds once, finds models that were deep-copied or unpickled, and leaves no
hook behind; hooks on module registration would miss those.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch

from steadygrad.runlog.records import TensorInfo
from steadygrad.torch.naming import describe

_WRAPPINGS = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")


@dataclass(frozen=True)
class Place:
    """Where a parameter was found.

    Attributes:
        root: the outermost module that holds it.
        name: its qualified name below that module.
        owner: the module whose own parameter it is.
    """

    root: torch.nn.Module
    name: str
    owner: torch.nn.Module


class Census:
    """The modules and optimizers that are alive.

    Attributes:
        optimizers: every optimizer found.
    """

    def __init__(self) -> None:
        self.optimizers: list[torch.optim.Optimizer] = []
        self._places: dict[int, list[Place]] = {}
        self._order: dict[int, int] = {}
        self._owners: dict[int, list[int]] = {}
        self.refresh()

    def refresh(self) -> None:
        """Look again, for models and optimizers that were made since."""
        modules: list[torch.nn.Module] = []
        self.optimizers = []
        for thing in gc.get_objects():
            kind = type(thing)  # never isinstance: it would ask lazy proxies for their class
            if issubclass(kind, torch.nn.Module):
                modules.append(thing)
            elif issubclass(kind, torch.optim.Optimizer) and "param_groups" in vars(thing):
                self.optimizers.append(thing)
        self._places = {}
        for root in _roots(modules):
            self._enter(root)

    def owned(self) -> set[int]:
        """Ids of the parameters that some optimizer holds."""
        return {id(parameter) for parameter in self.parameters()}

    def parameters(self) -> list[torch.Tensor]:
        """Everything that an optimizer holds."""
        groups = [group for optimizer in self.optimizers for group in optimizer.param_groups]
        return [parameter for group in groups for parameter in group["params"]]

    def model_names(self) -> list[str]:
        """Class names of the outermost modules that hold a parameter of an optimizer."""
        owned = self.owned() | set(self._order)
        roots = {id(p.root): p.root for key in owned for p in self._places.get(key, [])}
        return sorted({type(root).__name__ for root in roots.values()})

    def device(self) -> str:
        """Where the optimizers' parameters live; empty where there are none."""
        return ", ".join(sorted({str(parameter.device) for parameter in self.parameters()}))

    def knows(self, parameter: torch.Tensor) -> bool:
        """Whether a module holds this parameter."""
        return id(parameter) in self._places

    def note_order(self, leaves: dict[torch.Tensor, int]) -> None:
        """Keep the forward order of leaves, as `graph.leaves_of` gives it."""
        for leaf in leaves:
            self._order.setdefault(id(leaf), len(self._order))

    def orders(self, parameters: Iterable[torch.Tensor]) -> bool:
        """Whether the forward order of all of these is known."""
        return all(id(parameter) in self._order for parameter in parameters)

    def names(self, parameters: list[torch.Tensor], taken: set[str]) -> dict[int, TensorInfo]:
        """Describe the parameters of one optimizer.

        Args:
            parameters: what it holds.
            taken: names that other optimizers' tensors have; the new ones are added.

        Returns:
            ``{id(parameter): description}``, names unique.
        """
        root = self._root_of(parameters)
        found = {id(p): self._describe(p, root, i) for i, p in enumerate(parameters)}
        if root is not None and self._several_roots():
            label = _label(root)
            found = {k: replace(info, name=f"{label}.{info.name}") for k, info in found.items()}
        for key, info in found.items():
            name, count = info.name, 2
            while name in taken:
                name, count = f"{info.name}#{count}", count + 1
            taken.add(name)
            found[key] = replace(info, name=name)
        return found

    def _enter(self, root: torch.nn.Module) -> None:
        for path, module in root.named_modules():
            for name, parameter in module.named_parameters(recurse=False):
                full = _unwrapped(f"{path}.{name}" if path else name)
                self._places.setdefault(id(parameter), []).append(Place(root, full, module))

    def _root_of(self, parameters: list[torch.Tensor]) -> torch.nn.Module | None:
        """The outermost module that holds most of these parameters."""
        held: dict[int, int] = {}
        roots: dict[int, torch.nn.Module] = {}
        for parameter in parameters:
            for place in self._places.get(id(parameter), []):
                key = id(place.root)
                held[key] = held.get(key, 0) + 1
                roots[key] = place.root
        return roots[max(held, key=held.__getitem__)] if held else None

    def _several_roots(self) -> bool:
        """Whether the script trains more than one model, as a GAN does."""
        held = ([p for g in o.param_groups for p in g["params"]] for o in self.optimizers)
        roots = {id(root) for group in held if (root := self._root_of(group)) is not None}
        return len(roots) > 1

    def _describe(
        self, parameter: torch.Tensor, root: torch.nn.Module | None, number: int
    ) -> TensorInfo:
        places = self._places.get(id(parameter))
        if not places:
            name = global_name(parameter) or f"tensor{number}"
            return describe(parameter, name, position=self._order.get(id(parameter), -1))
        place = next((p for p in places if p.root is root), places[0])
        return describe(
            parameter, place.name, type(place.owner).__name__, self._position(place.owner)
        )

    def _position(self, module: torch.nn.Module) -> int:
        own = [self._order.get(id(p), -1) for p in module.parameters(recurse=False)]
        known = [place for place in own if place >= 0]
        return min(known) if known else -1


def global_name(thing: Any) -> str | None:
    """The name of a global variable of the script that holds this very object."""
    main = sys.modules.get("__main__")
    scope = vars(main) if main is not None else {}
    return next((name for name, value in list(scope.items()) if value is thing), None)


def _roots(modules: list[torch.nn.Module]) -> list[torch.nn.Module]:
    inner = {id(child) for module in modules for child in _children(module)}
    return [module for module in modules if id(module) not in inner]


def _children(module: torch.nn.Module) -> list[torch.nn.Module]:
    held = vars(module).get("_modules") or {}
    return [child for child in held.values() if child is not None]


def _unwrapped(name: str) -> str:
    for wrapping in _WRAPPINGS:
        name = name.replace(wrapping, "")
    return name.removeprefix("module.")


def _label(root: torch.nn.Module) -> str:
    return global_name(root) or type(root).__name__
