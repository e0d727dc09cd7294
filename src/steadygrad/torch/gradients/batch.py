"""The gradients of one step, as measuring and acting pass them on."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from steadygrad.torch.distributed.layout import NOWHERE, Spread


class GradientBatch(NamedTuple):
    """The gradients of one step.

    Attributes:
        grads: the gradients that are there, in the optimizer's order.
        params: their parameters.
        names: their names.
        sizes: their numbers of elements.
        scale: the loss scale that they carry, a 0-d tensor; None for none.
        state: the optimizer's state, for policies that read it.
        present: their places among all parameters; None where all have a gradient.
        spread: which ranks hold pieces of them, as far as the tensors do not tell.
    """

    grads: list[torch.Tensor]
    params: list[torch.Tensor]
    names: tuple[str, ...]
    sizes: tuple[int, ...]
    scale: Any = None
    state: Any = None
    present: list[int] | None = None
    spread: Spread = NOWHERE

    def with_gradients(self) -> GradientBatch:
        """Itself, without the parameters of FSDP1 of which no piece is here."""
        if not self.spread.pieces:
            return self
        present = [i for i, parameter in enumerate(self.params) if parameter.grad is not None]
        return self._replace(
            grads=[self.grads[i] for i in present],
            params=[self.params[i] for i in present],
            names=tuple(self.names[i] for i in present),
            sizes=tuple(self.sizes[i] for i in present),
            present=present,
        )
