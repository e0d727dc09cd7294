"""Weights that backward reaches and no optimizer holds."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch

from steadygrad.launch.torch_script.attachments import Attachments
from steadygrad.launch.torch_script.graph import leaves_of
from steadygrad.torch.distributed.ownership import is_flat


class LooseLeaves:
    """Finds them.

    Args:
        attachments: the script's optimizers.

    Attributes:
        by_hand: the script has moved such weights itself: no optimizer is awaited.
    """

    def __init__(self, attachments: Attachments) -> None:
        self._attachments = attachments
        self.by_hand = False
        self._seen: set[int] = set()
        self._looked_for_inputs = False

    @property
    def any_seen(self) -> bool:
        """Whether there were some when the script's optimizers were last searched for."""
        return bool(self._seen)

    def under(self, tensors: Sequence[object]) -> list[torch.Tensor]:
        """Those in the graph of some losses; their order in the forward pass is learned too."""
        leaves = leaves_of([t for t in tensors if isinstance(t, torch.Tensor)])
        self._attachments.counted().note_order(leaves)
        return self.of(leaves)

    def of(self, leaves: Iterable[torch.Tensor]) -> list[torch.Tensor]:
        """Those among some leaves."""
        census = self._attachments.counted()
        owned = census.owned()
        # FSDP1 steps on views of the flat leaf that backward reaches
        leaves = [leaf for leaf in leaves if not is_flat(leaf)]
        loose = [leaf for leaf in leaves if id(leaf) not in owned]
        none_yet = not self.by_hand and not census.optimizers()
        awaited = self._attachments.acts and none_yet  # one is to be met before its step
        new = loose if awaited else [leaf for leaf in loose if id(leaf) not in self._seen]
        if new and self._deserve_a_look(new):
            census.refresh()  # their optimizer may be newer than the census
            owned = census.owned()
            loose = [leaf for leaf in leaves if id(leaf) not in owned]
            self._seen = set(map(id, loose))
        return loose

    def _deserve_a_look(self, new: list[torch.Tensor]) -> bool:
        """Whether to search for the optimizer of leaves not seen before.

        Inputs that need gradients are new at every step, and each search costs tens of ms: they
        get one. An optimizer of such tensors that is missed here is met when it first steps.
        """
        if any(isinstance(leaf, torch.nn.Parameter) for leaf in new):
            return True
        first, self._looked_for_inputs = not self._looked_for_inputs, True
        return first
