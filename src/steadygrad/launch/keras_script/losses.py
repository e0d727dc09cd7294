"""The loss of a step: what was last differentiated."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    import torch

    from steadygrad.launch.contracts import RunContext
    from steadygrad.launch.keras_script.ground import Ground
    from steadygrad.typing import Array


class HeardLoss:
    """The loss that the next step is on.

    Args:
        session: the run.
        ground: what Keras runs on; TensorFlow's losses are heard by its own observer.

    Attributes:
        loss: what was last differentiated, on other backends than TensorFlow.
    """

    def __init__(self, session: RunContext, ground: Ground) -> None:
        self._session, self._ground = session, ground
        self._shares = False
        self.loss: object = None

    def scaled(self, scaled: Array, loss: Array) -> None:
        """A loss was multiplied by a loss scale."""
        self._session.guarded("a loss is not seen", self._note_scaled, scaled, loss)

    def _note_scaled(self, scaled: Array, loss: Array) -> None:
        if self._ground.tensorflow is not None:
            self._ground.tensorflow.losses.scaled(scaled, loss)
        elif self._ground.name == "torch":
            self.loss = cast("torch.Tensor", loss).detach()

    @contextlib.contextmanager
    def sharing(self) -> Iterator[None]:
        """Several optimizers step on one loss."""
        self._shares = True
        try:
            yield
        finally:
            self._shares = False
            if self._session.plan.clip is None:
                self.take(())  # else the hook of them all tells it yet

    def peek(self, variables: Sequence[object]) -> object:
        """The loss that the next step of these variables will take."""
        tensorflow = self._ground.tensorflow
        return self.loss if tensorflow is None else tensorflow.losses.peek(variables)

    def take(self, variables: Sequence[object]) -> object:
        """The loss; the step after this one has another, unless several share it."""
        loss = self.peek(variables)
        if self._shares:
            return loss
        self.loss = None
        if self._ground.tensorflow is not None:
            self._ground.tensorflow.losses.take(variables)
        return loss
