"""What the graphs of the first losses say of them, all of it."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from steadygrad.runlog.info import LogitsFacts, SizeFacts, TargetFacts
from steadygrad.torch.loop.broadcast import broadcast_of
from steadygrad.torch.loop.logits import logits_of
from steadygrad.torch.loop.reduction import summed_of
from steadygrad.torch.loop.sizes import sizes_of
from steadygrad.torch.loop.targets import targets_of

MOST_GRAPHS = 3


class LossGraphs:
    """Reads the graphs of the first `MOST_GRAPHS` losses.

    Example:
        >>> graphs = LossGraphs()
        >>> x, y = torch.zeros(2, 3, requires_grad=True), torch.tensor([0, 2])
        >>> graphs.saw([torch.nn.functional.cross_entropy(x.softmax(1), y)])
        >>> graphs.as_json()["logits"]
        {'loss': 'cross_entropy', 'before': 'softmax'}
    """

    def __init__(self) -> None:
        self._seen = 0
        self._logits: LogitsFacts | None = None
        self._targets: TargetFacts | None = None
        self._broadcast: list[int] = []
        self._sizes: SizeFacts | None = None
        self._summed = 0

    @property
    def wanted(self) -> bool:
        """Whether another graph is to be read."""
        return self._seen < MOST_GRAPHS

    def saw(self, roots: Sequence[torch.Tensor], values: bool = True) -> None:
        """Backward is called on these.

        Args:
            roots: the losses.
            values: whether targets and outputs are read too, for which a device is waited for.
        """
        self._seen += 1
        self._logits = self._logits or logits_of(roots)
        self._broadcast = self._broadcast or broadcast_of(roots)
        self._summed = max(self._summed, summed_of(roots))
        if values:
            self._targets = self._targets or targets_of(roots)
            self._sizes = self._sizes or sizes_of(roots)

    def as_json(self) -> dict[str, object]:
        """What they showed, for the run file."""
        return {
            "logits": self._logits,
            "targets": self._targets,
            "broadcast": self._broadcast,
            "sizes": self._sizes,
            "summed": self._summed,
        }
