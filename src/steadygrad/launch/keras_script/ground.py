"""What Keras runs on in this process, and how figures leave a step there."""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import ModuleType
from typing import TYPE_CHECKING, cast

from steadygrad.launch.keras_script.side import Side

if TYPE_CHECKING:
    from steadygrad.keras.engines import Backend
    from steadygrad.launch.contracts import RunContext
    from steadygrad.launch.tensorflow_script.observer import TensorFlowObserver
    from steadygrad.typing import Array


class Ground:
    """The backend under Keras.

    Args:
        session: the run.
        module: Keras, imported.
        tensorflow: gives what follows TensorFlow, where Keras runs on it.
    """

    def __init__(
        self,
        session: RunContext,
        module: ModuleType,
        tensorflow: Callable[[], TensorFlowObserver] | None,
    ) -> None:
        self._session, self._keras, self._under = session, module, tensorflow

    @property
    def name(self) -> str:
        """``tensorflow``, ``jax`` or ``torch``."""
        return str(self._keras.backend.backend())

    @functools.cached_property
    def tensorflow(self) -> TensorFlowObserver | None:
        """What follows TensorFlow, where Keras runs on it."""
        return None if self._under is None else self._under()

    @property
    def replicas(self) -> int:
        """How many of a model there are that train together in this process."""
        return 1 if self.tensorflow is None else self.tensorflow.replicas

    @property
    def replica(self) -> int:
        """Which of them runs, or is traced, now; -1 for all of them together."""
        return 0 if self.tensorflow is None else self.tensorflow.replica

    @functools.cached_property
    def backend(self) -> Backend:
        """What Keras runs on: made at the first step, since a script configures its devices
        before anything uses them."""
        from steadygrad.keras import engines

        return engines.current()

    @functools.cached_property
    def side(self) -> Side[Array]:
        """How figures leave a step."""
        if self.tensorflow is not None:
            return self.tensorflow.side
        if self.name == "torch":
            from steadygrad.launch.keras_script.torch_side import TorchSide

            return cast("Side[Array]", TorchSide(self._session))
        from steadygrad.launch.keras_script.jax_side import JaxSide

        return JaxSide()

    @property
    def is_tensorflow(self) -> bool:
        """Whether TensorFlow's own observer tells of steps."""
        return self._under is not None

    @property
    def is_jax(self) -> bool:
        """Whether training passes its state around."""
        return self.name == "jax"
