"""The parameters of one optimizer, with their names, kept until the optimizer changes.

Walking groups, asking for names and building tuples costs far more than the
gradients' read of a small model, so it is done once and checked by identity at
each step.
"""

from __future__ import annotations

import dataclasses
from operator import is_
from typing import Any

import torch

from steadygrad.runlog.records import TensorInfo
from steadygrad.torch.naming import Names, lookup


class ParameterTable:
    """Parameters in the order of the optimizer's groups.

    Attributes:
        params: the parameters.
        infos: one description a parameter.
        names: their names.
        sizes: their numbers of elements (of the whole tensor where it is sharded).
    """

    def __init__(self, names: Names | None, optimizer_index: int) -> None:
        self._resolve = names
        self._index = optimizer_index
        self.params: list[torch.Tensor] = []
        self.infos: tuple[TensorInfo, ...] = ()
        self.names: tuple[str, ...] = ()
        self.sizes: tuple[int, ...] = ()

    def refresh(self, optimizer: torch.optim.Optimizer) -> bool:
        """Follow the optimizer's groups; True where the parameters are not the last call's."""
        params = [p for group in optimizer.param_groups for p in group["params"]]
        if len(params) == len(self.params) and all(map(is_, params, self.params)):
            return False
        self.params = params
        self._describe(optimizer.param_groups)
        return True

    def _describe(self, groups: list[dict[str, Any]]) -> None:
        infos = [
            lookup(self._resolve, parameter, f"group{number}.{place}")
            for number, group in enumerate(groups)
            for place, parameter in enumerate(group["params"])
        ]
        self.infos = tuple(dataclasses.replace(i, optimizer=self._index) for i in infos)
        self.names = tuple(info.name for info in infos)
        self.sizes = tuple(p.numel() for p in self.params)
