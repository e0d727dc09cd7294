"""What is said where an attached optimizer is never given a gradient: it would clip nothing."""

from __future__ import annotations

import sys
from dataclasses import dataclass

from steadygrad.errors import NoGradientsWarning
from steadygrad.runlog.notice import warn


@dataclass
class OptimizerUse:
    """Whether an attached optimizer was used; keeps no optimizer alive.

    Attributes:
        came: gradients came to it.
        warned: that none did has been said.
    """

    came: bool = False
    warned: bool = False

    def tell_of_no_step(self, optimizer: str, where: str = "") -> None:
        """Warn, once, that no step was seen.

        Args:
            optimizer: the optimizer's class.
            where: none was seen, such as ``" in fit"``.
        """
        self._tell(
            f"the {optimizer} that steadygrad is attached to took no step{where}, so nothing was "
            "clipped or recorded: attach to the optimizer that the model is compiled with, "
            "steadygrad.keras.attach(model.optimizer, ...), and see that "
            "model.trainable_variables is not empty"
        )

    def tell_of_no_variables(self, optimizer: str) -> None:
        """Warn, once, that the optimizer has nothing to train.

        Args:
            optimizer: the optimizer's class.
        """
        self._tell(
            f"the {optimizer} that steadygrad is attached to was given no variables to train, so "
            "nothing is clipped or recorded: set layer.trainable = True for some layers of the "
            "model, and compile it again"
        )

    def _tell(self, sentence: str) -> None:
        if not self.warned:
            self.warned = True
            warn(sentence, NoGradientsWarning)

    def ends(self, optimizer: str) -> None:
        """The optimizer is detached, or gone: warn where it was never used.

        Args:
            optimizer: the optimizer's class.
        """
        if not self.came and not hasattr(sys, "last_type"):  # an error has told enough
            self.tell_of_no_step(optimizer)
