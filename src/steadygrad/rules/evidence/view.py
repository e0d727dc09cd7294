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
        """Whether gradients are so small that the epsilon they are divided by outweighs them."""
        norms = self.norm[self.usable]
        return bool(len(norms)) and median(norms) < self._felt

    @cached_property
    def ever_faint(self) -> bool:
        """Whether they are so from the first steps on, so that nothing can have been learned."""
        norms = self.norm[self.usable][max(1, len(self) // 20) :]
        return bool(len(norms)) and bool((norms < self._felt).all())

    @cached_property
    def _felt(self) -> float:
        """Norm from which an Adam or RMSprop feels its gradients; 0 for other optimizers."""
        own = (o for o in self.info.get("optimizers") or () if o.get("index") == self.optimizer)
        facts = next(own, None)
        kind = "" if facts is None else str(facts.get("class", "")).lower()
        if facts is None or not ("adam" in kind or "rmsprop" in kind):
            return 0.0
        epsilon = float(facts.get("eps") or 0.0)
        elements = sum(math.prod(tensor.shape) for tensor in self.tensors)
        return epsilon * math.sqrt(max(elements, 1))
