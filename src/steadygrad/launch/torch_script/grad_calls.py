"""Calls of `torch.autograd.grad` for weights, until it is known what became of the gradients.

Unlike `backward` it leaves nothing in ``.grad``: a loop may put what it returns there for an
optimizer, move weights by it, or build a loss from it (penalties, meta-learning).
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from steadygrad.torch.internals import sites
from steadygrad.torch.record.losses import Heard

MOST_WAITING = 32

Pairs = list[tuple[torch.Tensor, torch.Tensor]]
"""Leaves, and the gradient of each."""


@dataclass(frozen=True, eq=False)  # to compare two would compare their gradients
class GradCall:
    """One call for weights that an optimizer holds.

    Attributes:
        gradients: what it returned, by the id of the weight.
        loss: what was differentiated.
    """

    gradients: Mapping[int, weakref.ref[torch.Tensor]]
    loss: Heard

    def gave(self, parameters: Sequence[torch.Tensor]) -> bool:
        """Whether one of these has as its gradient what the call returned."""
        return any(
            p.grad is not None
            and (ref := self.gradients.get(id(p))) is not None
            and ref() is p.grad
            for p in parameters
        )


class GradCalls(threading.local):
    """The calls of each thread since its optimizers' last steps.

    Attributes:
        waiting: them.
    """

    def __init__(self) -> None:
        self.waiting: list[GradCall] = []

    def __bool__(self) -> bool:
        return bool(self.waiting)

    def saw(self, pairs: Pairs, loss: Heard) -> None:
        """Keep a call; its gradients are not kept alive."""
        refs = {id(leaf): weakref.ref(gradient) for leaf, gradient in pairs}
        self.waiting = [*self.waiting[1 - MOST_WAITING :], GradCall(refs, loss)]

    def taken(self, parameters: Sequence[torch.Tensor], alone: bool) -> list[GradCall]:
        """The calls that made the gradients of these parameters; no call of theirs waits after.

        Args:
            parameters: about to be clipped, or to be moved by their optimizer.
            alone: no `backward` has run since their last step.
        """
        ids = {id(p) for p in parameters}
        theirs = [call for call in self.waiting if not ids.isdisjoint(call.gradients)]
        taken = [call for call in theirs if call.gave(parameters)]
        if not taken and alone and any(p.grad is not None for p in parameters):
            taken = theirs  # summed up, scaled or copied by the script
        self.waiting = [call for call in self.waiting if call not in theirs]
        return taken


def weights_of(inputs: Any, results: Any) -> Pairs:
    """The leaves among what was differentiated for, and their gradients.

    Args:
        inputs: as `torch.autograd.grad` takes them.
        results: what it returned.

    Returns:
        Pairs; empty for what a transform or a compiler traces.
    """
    if isinstance(inputs, Mapping):
        pairs = [(leaf, results.get(key)) for key, leaf in inputs.items()]
    else:
        pairs = list(zip(sites.listed(inputs), results, strict=False))
    return [
        (leaf, gradient) for leaf, gradient in pairs if _is_leaf(leaf) and _is_its(gradient, leaf)
    ]


def _is_leaf(tensor: Any) -> bool:
    plain = _is_plain(tensor) or type(tensor) is torch.nn.Parameter
    return plain and tensor.is_leaf and tensor.requires_grad and not tensor.is_meta


def _is_its(gradient: Any, leaf: torch.Tensor) -> bool:
    return _is_plain(gradient) and gradient.shape == leaf.shape  # not so for a batch of them


def _is_plain(tensor: object) -> bool:
    return type(tensor) is torch.Tensor and not sites.is_traced(tensor)
