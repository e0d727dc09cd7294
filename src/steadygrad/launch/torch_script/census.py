"""Find the script's modules and optimizers, and give its parameters names.

One pass over the garbage collector's objects, at the first backward. It costs tens of
milliseconds once, finds models that were deep-copied or unpickled, and leaves no
hook behind; hooks on module registration would miss those.
"""

from __future__ import annotations

import collections
import sys
import time
import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import torch

from steadygrad.runlog.records import TensorInfo
from steadygrad.torch.internals.alive import alive
from steadygrad.torch.step.observing import describe

FREE_LOOKS = 32
REST = 50.0
"""Times as long as a look took until the next, once the free ones are used up: 2 % at most."""

_WRAPPINGS = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")


@dataclass(frozen=True)
class ModulePlace:
    """Where a parameter was found. Held weakly: a model that the script drops must go.

    Attributes:
        root: the outermost module that holds it.
        name: its qualified name below that module.
        owner: the module whose own parameter it is.
    """

    root: weakref.ref[torch.nn.Module]
    name: str
    owner: weakref.ref[torch.nn.Module]

    def holds(self, parameter: torch.Tensor) -> bool:
        """Whether it is still there: ids are used again."""
        owner = self.owner()
        return owner is not None and any(p is parameter for p in owner._parameters.values())


class Census:
    """The modules and optimizers that are alive.

    Args:
        meet: told of each optimizer at each look.
    """

    def __init__(self, meet: Callable[[torch.optim.Optimizer], None] | None = None) -> None:
        self._meet = meet
        self._optimizers: list[weakref.ref[torch.optim.Optimizer]] = []
        self._places: dict[int, list[ModulePlace]] = {}
        self._order: dict[int, tuple[weakref.ref[torch.Tensor], int]] = {}
        self._looks, self._next_look = 0, 0.0
        self.refresh()

    def refresh(self) -> bool:
        """Look again, for models and optimizers that were made since.

        Returns:
            Whether it was done: a script that makes an optimizer a task, as meta-learning does,
            must not spend its time here.
        """
        began = time.perf_counter()
        if self._looks >= FREE_LOOKS and began < self._next_look:
            return False
        self._look()
        now = time.perf_counter()
        self._looks, self._next_look = self._looks + 1, now + REST * (now - began)
        return True

    def _look(self) -> None:
        modules: list[torch.nn.Module] = []
        self._optimizers = []
        for thing in alive(torch.nn.Module, torch.optim.Optimizer):
            if issubclass(type(thing), torch.nn.Module):
                modules.append(thing)
            elif "param_groups" in vars(thing):
                self._optimizers.append(weakref.ref(thing))
        self._places = {}
        for root in _roots(modules):
            self._enter(root)
        if self._meet is not None:
            for optimizer in self.optimizers():
                self._meet(optimizer)

    def optimizers(self) -> list[torch.optim.Optimizer]:
        """Those that are alive, as far as the census knows them."""
        return [optimizer for ref in self._optimizers if (optimizer := ref()) is not None]

    def groups(self) -> list[list[torch.Tensor]]:
        """The parameters of each optimizer."""
        return [[p for group in o.param_groups for p in group["params"]] for o in self.optimizers()]

    def owned(self) -> set[int]:
        """Ids of the parameters that some optimizer holds."""
        return {id(parameter) for group in self.groups() for parameter in group}

    def model_names(self) -> list[str]:
        """Class names of the outermost modules that were trained."""
        names = set()
        for key in self.owned() | set(self._order):
            roots = (place.root() for place in self._places.get(key, []))
            names |= {type(root).__name__ for root in roots if root is not None}
        return sorted(names)

    def device(self) -> str:
        """Where the optimizers' parameters live; empty where there are none."""
        return ", ".join(sorted({str(p.device) for group in self.groups() for p in group}))

    def knows(self, parameter: torch.Tensor) -> bool:
        """Whether a module holds this parameter."""
        return bool(self._of(parameter))

    def roots(self, parameter: torch.Tensor) -> list[torch.nn.Module]:
        """The outermost modules that hold this parameter."""
        roots = (place.root() for place in self._of(parameter))
        return [root for root in roots if root is not None]

    def part_of(self, parameter: torch.Tensor) -> tuple[int, str] | None:
        """The outermost module that holds it and its child there; None where no module holds it."""
        for place in self._of(parameter):
            root = place.root()
            if root is not None:
                return id(root), place.name.partition(".")[0]
        return None

    def name_of(self, parameter: torch.Tensor) -> str:
        """Its qualified name, below the outermost module's; empty where no module holds it."""
        for place in self._of(parameter):
            root = place.root()
            if root is not None:
                return f"{_label(root)}.{place.name}"
        return global_name(parameter) or ""

    def note_order(self, leaves: Iterable[torch.Tensor]) -> None:
        """Keep the forward order of leaves, as `graph.leaves_of` gives it."""
        for leaf in leaves:
            if self.place_of(leaf) < 0:
                self._order[id(leaf)] = (weakref.ref(leaf), len(self._order))

    def place_of(self, leaf: torch.Tensor) -> int:
        """The leaf's place in the forward order; -1 where unknown."""
        ref, place = self._order.get(id(leaf), (None, -1))
        return place if ref is not None and ref() is leaf else -1

    def settled(self) -> bool:
        """Whether there are optimizers, and the forward order of all they hold is known."""
        groups = self.groups()
        return bool(groups) and all(self.place_of(p) >= 0 for group in groups for p in group)

    def names(self, parameters: list[torch.Tensor], taken: set[str]) -> dict[int, TensorInfo]:
        """Describe the parameters of one optimizer.

        Args:
            parameters: what it holds.
            taken: names that other optimizers' tensors have; the new ones are added.

        Returns:
            ``{id(parameter): description}``, names unique.
        """
        root = self._root_of(parameters)
        infos = {id(p): self._describe(p, root, i) for i, p in enumerate(parameters)}
        if root is not None and self._several_roots():
            label = _label(root)
            infos = {k: replace(info, name=f"{label}.{info.name}") for k, info in infos.items()}
        for key, info in infos.items():
            name, count = info.name, 2
            while name in taken:
                name, count = f"{info.name}#{count}", count + 1
            taken.add(name)
            infos[key] = replace(info, name=name)
        return infos

    def _enter(self, root: torch.nn.Module) -> None:
        above = weakref.ref(root)
        for path, module in root.named_modules():
            for name, parameter in module.named_parameters(recurse=False):
                full = _unwrapped(f"{path}.{name}" if path else name)
                place = ModulePlace(above, full, weakref.ref(module))
                self._places.setdefault(id(parameter), []).append(place)

    def _of(self, parameter: torch.Tensor) -> list[ModulePlace]:
        return [p for p in self._places.get(id(parameter), []) if p.holds(parameter)]

    def _root_of(self, parameters: list[torch.Tensor]) -> torch.nn.Module | None:
        """The outermost module that holds most of these parameters."""
        places = [place for parameter in parameters for place in self._of(parameter)]
        roots = [root for place in places if (root := place.root()) is not None]
        counts = collections.Counter(map(id, roots))
        return max(roots, key=lambda root: counts[id(root)]) if roots else None

    def _several_roots(self) -> bool:
        """Whether the script trains more than one model, as a GAN does."""
        roots = (self._root_of(group) for group in self.groups())
        return len({id(root) for root in roots if root is not None}) > 1

    def _describe(
        self, parameter: torch.Tensor, root: torch.nn.Module | None, number: int
    ) -> TensorInfo:
        places = self._of(parameter)
        if not places:
            name = global_name(parameter) or f"tensor{number}"
            return describe(parameter, name, position=self.place_of(parameter))
        place = next((p for p in places if p.root() is root), places[0])
        owner = place.owner()
        assert owner is not None  # `holds` has just seen it
        return describe(parameter, place.name, type(owner).__name__, self._position(owner))

    def _position(self, module: torch.nn.Module) -> int:
        own = [self.place_of(p) for p in module.parameters(recurse=False)]
        places = [place for place in own if place >= 0]
        return min(places) if places else -1


def global_name(thing: object) -> str | None:
    """The name of a global variable of the script that holds this very object."""
    main = sys.modules.get("__main__")
    scope = vars(main) if main is not None else {}
    return next((name for name, value in list(scope.items()) if value is thing), None)


def _roots(modules: list[torch.nn.Module]) -> list[torch.nn.Module]:
    inner = {id(child) for module in modules for child in _children(module)}
    return [module for module in modules if id(module) not in inner]


def _children(module: torch.nn.Module) -> list[torch.nn.Module]:
    modules = vars(module).get("_modules") or {}
    return [child for child in modules.values() if child is not None]


def _unwrapped(name: str) -> str:
    for wrapping in _WRAPPINGS:
        name = name.replace(wrapping, "")
    return name.removeprefix("module.")


def _label(root: torch.nn.Module) -> str:
    return global_name(root) or type(root).__name__
