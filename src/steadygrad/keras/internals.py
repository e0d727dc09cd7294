"""Every private name of Keras that steadygrad's observing uses: a release of Keras breaks one file.

Keras itself must not be loaded here before a script has chosen its backend and devices.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any


def base_optimizer() -> Any:
    """The class whose `apply` every way of training passes."""
    return sys.modules["keras.src.optimizers.base_optimizer"].BaseOptimizer


def jax_trainer() -> Any:
    """The class of Keras' models on JAX."""
    return sys.modules["keras.src.backend.jax.trainer"].JAXTrainer


def trainable_variables(optimizer: Any) -> list[Any]:
    """The variables that an optimizer was built for; empty before."""
    return list(optimizer._trainable_variables)


def index_of(optimizer: Any, variable: Any) -> int:
    """The place of a variable among the optimizer's."""
    return int(optimizer._get_variable_index(variable))


def iterations(optimizer: Any) -> Any:
    """The variable that counts an optimizer's micro-batches."""
    return optimizer._iterations


def members(optimizer: Any) -> Sequence[Any]:
    """The optimizers inside of a `MultiOptimizer`."""
    return list(getattr(optimizer, "_inner_optimizers", []))
