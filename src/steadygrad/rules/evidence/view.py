"""View: one optimizer's steps of a run, which every rule reads through.

Its steps, their losses and their tensors are files of their own; here is what takes them together.
"""

from __future__ import annotations

import math
from functools import cached_property

from steadygrad.robust import median
from steadygrad.rules.evidence.losses import LossesOfSteps
from steadygrad.rules.evidence.tensors import TensorsOfSteps

SHORT = 0.2
"""Part of their size within which all weights stayed, so that a stalled loss is no evidence."""


class View(LossesOfSteps, TensorsOfSteps):
    """One optimizer's steps, their losses and their tensors.

    Args:
        run: the run, as `steadygrad.open_run` gives it.
        optimizer: number of the optimizer.
    """

    @property
    def stuck(self) -> bool:
        """Whether the loss stalls although the weights had a chance to lower it.

        Where the learning rate, or the shortness of the run, kept every weight next to where it
        began, a loss that has not moved yet says nothing of the gradients. Under an optimizer that
        divides by their size, gradients below its epsilon are what kept them.
        """
        return self.loss_trend.stalled and (not self.travel < SHORT or self.faint)

    @cached_property
    def faint(self) -> bool:
        """Whether gradients are so small that the epsilon of an Adam outweighs them."""
        own = (o for o in self.info.get("optimizers") or () if o.get("index") == self.optimizer)
        facts = next(own, None)
        if facts is None or "adam" not in str(facts.get("class", "")).lower():
            return False
        epsilon = float(facts.get("eps") or 0.0)
        elements = sum(math.prod(tensor.shape) for tensor in self.tensors)
        norms = self.norm[self.usable]
        return bool(len(norms)) and median(norms) < epsilon * math.sqrt(max(elements, 1))
