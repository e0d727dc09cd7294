"""Every private name of Keras that steadygrad's observing uses: a release of Keras breaks one file.

Keras itself must not be loaded here before a script has chosen its backend and devices.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import keras
    import tensorflow as tf

DROPS_OF_SCALERS = ("_stateful_handle_non_finite_grads", "_stateless_handle_non_finite_grads")
"""What a `LossScaleOptimizer` calls where it drops a step, with variables and without."""

MOMENTS = ("_velocities", "_accumulators")
"""What Keras' optimizers call their running mean (Adagrad: sum) of squared gradients."""
SLOTS = ("v", "rms", "accumulator")
"""What the same is called by legacy optimizers of tf_keras."""


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


class OfTfKeras(Protocol):
    """What is asked of an optimizer of tf_keras; a legacy one has slots."""

    iterations: tf.Variable
    _index_dict: dict[str, int]

    def build(self, var_list: Sequence[tf.Variable]) -> None:
        """Make its variables."""

    def _var_key(self, variable: tf.Variable) -> str:
        """The name of a variable in ``_index_dict``."""

    def get_slot_names(self) -> list[str]:
        """What it keeps beside each variable."""

    def get_slot(self, variable: tf.Variable, name: str) -> tf.Variable:
        """One of these."""


def built_moments(
    optimizer: OfTfKeras, variables: Sequence[tf.Variable]
) -> list[tf.Variable | None]:
    """The running means of squared gradients that an optimizer of tf_keras keeps.

    Args:
        optimizer: it; its variables are made, as it would a moment later itself.
        variables: some of those that it moves.

    Returns:
        One for each; None where there is none.
    """
    if hasattr(optimizer, "_create_all_weights"):
        optimizer._create_all_weights(variables)
        names = optimizer.get_slot_names()
        slot = next((name for name in SLOTS if name in names), None)
        return [None if slot is None else optimizer.get_slot(v, slot) for v in variables]
    optimizer.build(variables)
    moments = next((m for name in MOMENTS if (m := getattr(optimizer, name, None))), None)
    if moments is None:
        return [None] * len(variables)
    places = optimizer._index_dict
    return [moments[places[optimizer._var_key(variable)]] for variable in variables]
