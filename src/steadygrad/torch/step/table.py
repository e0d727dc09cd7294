"""The parameters of one optimizer, with their names, kept until the optimizer changes.

Walking groups, asking for names and building tuples costs far more than the
gradients' read of a small model, so it is done once and checked by identity at
each step.
"""

from __future__ import annotations

import dataclasses
from operator import attrgetter
from typing import Any

import torch

from steadygrad.kernels.native import Stamped, holds
from steadygrad.runlog.records import TensorInfo
from steadygrad.torch.distributed.exchange import Tell, warn_of_replicas
from steadygrad.torch.distributed.layout import NOWHERE, Spread
from steadygrad.torch.distributed.ownership import Groups, spread_of
from steadygrad.torch.gradients.batch import GradientBatch
from steadygrad.torch.step.naming import Names, lookup

_GRAD = attrgetter("grad")


class ParameterTable(Stamped):
    """Parameters in the order of the optimizer's groups.

    Attributes:
        params: the parameters.
        listed: the same as the groups have them, one that they name twice too.
        infos: one description a parameter.
        names: their names.
        sizes: their numbers of elements (of the whole tensor where it is sharded).
        spread: which ranks hold pieces of them, as far as the tensors do not tell.
        tell: given a sentence where ranks differ in what they should hold alike.
        present: places of those that had a gradient in the last batch; None for all.
    """

    def __init__(
        self, names: Names | None, optimizer_index: int, process_group: Groups = None
    ) -> None:
        self._resolve = names
        self._process_group = process_group
        self.spread: Spread = NOWHERE
        self.tell: Tell = warn_of_replicas
        self._index = optimizer_index
        self.listed: list[torch.Tensor] = []
        self.params: list[torch.Tensor] = []
        self.infos: tuple[TensorInfo, ...] = ()
        self.names: tuple[str, ...] = ()
        self.sizes: tuple[int, ...] = ()
        self.present: list[int] | None = None

    def refresh(self, optimizer: torch.optim.Optimizer) -> bool:
        """Follow the optimizer's groups; True where the parameters are not the last call's."""
        if holds(optimizer.param_groups, self.listed):
            return False
        self.listed = [p for group in optimizer.param_groups for p in group["params"]]
        self.describe(optimizer)
        self.spread = spread_of(self.params, self.names, self._process_group, self._tell)
        return True

    def _tell(self, sentence: str) -> None:
        self.tell(sentence)

    def describe(self, optimizer: torch.optim.Optimizer) -> None:
        """Ask for the names again."""
        places: dict[torch.Tensor, str] = {}  # a parameter given twice counts once
        for number, group in enumerate(optimizer.param_groups):
            for place, parameter in enumerate(group["params"]):
                places.setdefault(parameter, f"group{number}.{place}")
        self.params = list(places)
        infos = [lookup(self._resolve, p, place) for p, place in places.items()]
        self.infos = tuple(dataclasses.replace(i, optimizer=self._index) for i in infos)
        self.names = tuple(info.name for info in infos)
        self.sizes = tuple(p.numel() for p in self.params)

    def batch(self, scale: object, state: object) -> GradientBatch:
        """The gradients that are there now.

        Args:
            scale: the loss scale that they carry; None for none.
            state: the optimizer's state.

        Returns:
            Them, in the order of the parameters.
        """
        grads: list[Any] = list(map(_GRAD, self.params))
        if self.spread.pieces:  # what has no piece here has one elsewhere, and figures everywhere
            grads = [torch.empty(0) if grad is None else grad for grad in grads]
        if type(None) not in set(map(type, grads)):
            self.present = None
            return GradientBatch(
                grads, self.params, self.names, self.sizes, scale, state, spread=self.spread
            )
        present = self.present = [i for i, grad in enumerate(grads) if grad is not None]
        return GradientBatch(
            grads=[grads[i] for i in present],
            params=[self.params[i] for i in present],
            names=tuple(self.names[i] for i in present),
            sizes=tuple(self.sizes[i] for i in present),
            scale=scale,
            state=state,
            present=present,
            spread=self.spread,
        )
