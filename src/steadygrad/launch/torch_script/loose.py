"""Weights that backward reaches and no optimizer holds."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Sequence
from operator import is_

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
        self._before: list[weakref.ref[torch.Tensor]] = []

    @property
    def any_seen(self) -> bool:
        """Whether there were some when the script's optimizers were last searched for."""
        return bool(self._seen)

    def under(self, tensors: Sequence[object]) -> list[torch.Tensor]:
        """Those in the graph of some losses; their order in the forward pass is learned too."""
        leaves = leaves_of([t for t in tensors if isinstance(t, torch.Tensor)])
        if self._are_those_before(leaves):
            return leaves
        census = self._attachments.counted()
        census.note_order(leaves)
        loose = self.of(leaves)
        all_loose = self.by_hand and len(loose) == len(leaves) and not census.optimizers()
        self._before = list(map(weakref.ref, leaves)) if all_loose else []
        return loose

    def _are_those_before(self, leaves: Sequence[torch.Tensor]) -> bool:
        """Whether there is no optimizer, and these are loose as they were at the last backward."""
        if len(leaves) != len(self._before) or self._attachments.counted().optimizers():
            return False
        return all(map(is_, leaves, [ref() for ref in self._before]))

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
