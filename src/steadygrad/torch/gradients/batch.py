"""The gradients of one step, as measuring and acting pass them on."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch


class Batch(NamedTuple):
    """The gradients of one step.

    Attributes:
        grads: the gradients that are there, in the optimizer's order.
        params: their parameters.
        names: their names.
        sizes: their numbers of elements.
        scale: the loss scale that they carry, a 0-d tensor; None for none.
        state: the optimizer's state, for policies that read it.
        present: their places among all parameters; None where all have a gradient.
    """

    grads: list[torch.Tensor]
    params: list[torch.Tensor]
    names: tuple[str, ...]
    sizes: tuple[int, ...]
    scale: Any = None
    state: Any = None
    present: list[int] | None = None
