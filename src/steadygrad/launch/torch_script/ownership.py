"""Who holds which parameter: those with a gradient and no optimizer, and the other way round."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any

import torch

from steadygrad.launch.torch_script.census import Census
from steadygrad.torch.distributed.ownership import gathered_for_a_pass
from steadygrad.torch.gradients.parameters import parameters_of
from steadygrad.torch.internals.alive import alive
from steadygrad.torch.loop.elements import elements_of

LISTED = 8
"""How many names are kept."""


class Ownership:
    """Collects what the first steps show, and describes it once."""

    def __init__(self) -> None:
        self._loose: dict[int, tuple[weakref.ref[torch.Tensor], int]] = {}
        self._firsts: dict[int, torch.Tensor | None] = {}
        self._graded: dict[int, set[int]] = {}
        self._orphans: list[dict[str, object]] = []
        self._stale: list[dict[str, object]] = []

    def saw_loose(self, leaves: Iterable[torch.Tensor]) -> None:
        """A backward reaches these leaves, which no optimizer holds."""
        for leaf in leaves:
            ref, seen = self._loose.get(id(leaf), (None, 0))
            again = ref is not None and ref() is leaf
            if not again and isinstance(leaf, torch.nn.Parameter):
                self._firsts[id(leaf)] = elements_of(leaf)
            self._loose[id(leaf)] = (weakref.ref(leaf), seen + 1 if again else 1)

    def before_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Note which parameters have a gradient at a step."""
        graded = self._graded.setdefault(id(optimizer), set())
        graded.update(id(p) for p in parameters_of(optimizer) if p.grad is not None)

    def settle(self, optimizer: torch.optim.Optimizer, index: int, census: Census) -> None:
        """Describe what was seen of one optimizer, while its model is alive."""
        graded = self._graded.pop(id(optimizer), set())
        parameters = parameters_of(optimizer)
        left_out = [p for p in parameters if id(p) not in graded and p.requires_grad]
        again = self._seen_again()
        if not again and not left_out:  # as at most: the census takes a while
            self._orphans = []
            return
        if not census.refresh():  # who is new may hold what seems to be nobody's
            return
        loose = self._living(again, census)
        reached = {id(r) for p in [*loose, *parameters] if _reached(p, graded, loose)
                   for r in census.roots(p)}  # fmt: skip
        stale = [p for p in left_out if _left_behind(p, census, reached, loose, parameters)]
        if stale:
            self._stale.append({"index": index, **_described(stale, census)})
        self._orphans = _orphans(loose, parameters, census)

    def as_json(self) -> dict[str, object]:
        """All of it, for the run file."""
        return {"loose": self._orphans, "stale": self._stale}

    def _seen_again(self) -> list[torch.Tensor]:
        """The loose parameters that several backward passes have reached: they are no inputs."""
        again = (ref() for ref, seen in self._loose.values() if seen > 1)
        return [leaf for leaf in again if isinstance(leaf, torch.nn.Parameter)]

    def _living(self, again: list[torch.Tensor], census: Census) -> list[torch.Tensor]:
        """Those of the loose parameters that have no owner yet.

        What has moved is somebody's: a copy of master weights, an average, an update by hand.
        """
        owned = census.owned()
        nobodys = [leaf for leaf in again if id(leaf) not in owned]
        gathered = gathered_for_a_pass() if nobodys else set()
        return [leaf for leaf in nobodys if id(leaf) not in gathered and not self._moved(leaf)]

    def _moved(self, leaf: torch.Tensor) -> bool:
        first, now = self._firsts.get(id(leaf)), elements_of(leaf)
        if first is None or now is None:
            return first is not None  # its elements are gone: FSDP1 takes them away, and so owns it
        return first.shape != now.shape or not torch.equal(first.to(now), now)


def _reached(p: torch.Tensor, graded: set[int], loose: list[torch.Tensor]) -> bool:
    return id(p) in graded or any(p is leaf for leaf in loose)


def _left_behind(
    p: torch.Tensor,
    census: Census,
    reached: set[int],
    loose: list[torch.Tensor],
    parameters: list[torch.Tensor],
) -> bool:
    """Whether a parameter without a gradient is no longer of the model that is trained.

    No module has it, though modules have the others; or a model has it that no gradient reaches,
    while one that gradients do reach has such parameters as the optimizer lacks.
    """
    roots = census.roots(p)
    if not roots:
        return any(census.roots(other) for other in [*parameters, *loose])
    outside = not any(id(root) in reached for root in roots)
    return outside and any(leaf.dim() == p.dim() for leaf in loose)


def _described(parameters: list[torch.Tensor], census: Census) -> dict[str, Any]:
    names = [census.name_of(p) for p in parameters]
    return {
        "names": [name or f"a tensor of shape {tuple(p.shape)}"
                  for name, p in zip(names, parameters, strict=True)][:LISTED],
        "count": len(parameters),
        "elements": sum(p.numel() for p in parameters),
    }  # fmt: skip


def _orphans(
    loose: list[torch.Tensor], parameters: list[torch.Tensor], census: Census
) -> list[dict[str, object]]:
    """The parameters of no optimizer, grouped by the container that holds them."""
    if not loose:
        return []
    root_ids = {id(root) for p in parameters for root in census.roots(p)}
    outside = [p for p in loose if not any(id(root) in root_ids for root in census.roots(p))]
    containers = _containers(outside, census) if outside else {}
    groups: dict[tuple[str, bool], list[torch.Tensor]] = {}
    for p in loose:
        inside = any(id(root) in root_ids for root in census.roots(p))
        key = (containers.get(id(p), ""), inside)
        groups.setdefault(key, []).append(p)
    return [
        {"container": container, "of_the_model": inside, **_described(group, census)}
        for (container, inside), group in groups.items()
    ]


def _containers(parameters: list[torch.Tensor], census: Census) -> dict[int, str]:
    """For parameters that no trained model registers: the plain attribute that holds them."""
    owners = {id(root): p for p in parameters for root in census.roots(p)}
    wanted: dict[int, list[torch.Tensor]] = {}
    for p in parameters:
        wanted.setdefault(id(p), []).append(p)
        for root in census.roots(p):
            wanted.setdefault(id(root), []).append(p)
    containers: dict[int, str] = {}
    for module in alive(torch.nn.Module):
        if id(module) in owners:
            continue
        for key, value in list(vars(module).items()):
            if key in ("_parameters", "_modules", "_buffers"):
                continue
            for thing in _flat(value):
                for p in wanted.get(id(thing), ()):
                    containers[id(p)] = f"{type(module).__name__}.{key}"
    return containers


def _flat(value: Any, depth: int = 2) -> Iterable[object]:
    """What plain containers hold, without looking into anything else."""
    if type(value) in (list, tuple, set):
        items: Iterable[Any] = list(value)
    elif type(value) is dict:
        items = list(value.values())
    else:
        return
    for item in items:
        yield item
        if depth > 1:
            yield from _flat(item, depth - 1)
