"""Every private name of Keras that steadygrad's observing uses: a release of Keras breaks one file.

Keras itself must not be loaded here before a script has chosen its backend and devices.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import keras

DROPS_OF_SCALERS = ("_stateful_handle_non_finite_grads", "_stateless_handle_non_finite_grads")
"""What a `LossScaleOptimizer` calls where it drops a step, with variables and without."""


def base_optimizer() -> type[keras.Optimizer]:
    """The class whose `apply` every way of training passes."""
    base: type[keras.Optimizer] = sys.modules["keras.src.optimizers.base_optimizer"].BaseOptimizer
    return base


def jax_trainer() -> type[keras.Model]:
    """The class of Keras' models on JAX."""
    trainer: type[keras.Model] = sys.modules["keras.src.backend.jax.trainer"].JAXTrainer
    return trainer


def renew_shardings(model: keras.Model) -> None:
    """Count a model's variables anew: Keras 3.10 on JAX has done so before it traces a step."""
    record = getattr(model, "_record_training_state_sharding_spec", None)
    if record is not None:
        record()


def trainable_variables(optimizer: keras.Optimizer) -> list[keras.Variable]:
    """The variables that an optimizer was built for; empty before."""
    return list(optimizer._trainable_variables)


def index_of(optimizer: keras.Optimizer, variable: keras.Variable) -> int:
    """The place of a variable among the optimizer's."""
    return int(optimizer._get_variable_index(variable))


def iterations(optimizer: keras.Optimizer) -> keras.Variable:
    """The variable that counts an optimizer's micro-batches."""
    return optimizer._iterations


def loss_tracker(model: keras.Model) -> keras.Metric | None:
    """The metric that averages a compiled model's loss over an epoch; None where there is none."""
    return getattr(model, "_loss_tracker", None)


def own_rate(optimizer: keras.Optimizer) -> keras.Variable | None:
    """The variable that holds an optimizer's learning rate; None where a schedule gives it."""
    rate = getattr(optimizer, "_learning_rate", None)
    return rate if hasattr(rate, "assign") else None


def members(optimizer: keras.Optimizer) -> Sequence[keras.Optimizer]:
    """The optimizers inside of a `MultiOptimizer`."""
    return list(getattr(optimizer, "_inner_optimizers", []))


def name_scope(optimizer: keras.Optimizer) -> AbstractContextManager[None]:
    """Keras' scope for an optimizer's variables."""
    keras = sys.modules["keras"]
    scope: AbstractContextManager[None] = keras.name_scope(optimizer.name, caller=optimizer)
    return scope if scope is not None else nullcontext()
