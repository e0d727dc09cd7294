"""What one call of ``apply_gradients`` brings; loads nothing of TensorFlow."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import tensorflow as tf

    from steadygrad.tensorflow.engine import Gradient

Pair = tuple["Gradient | None", "tf.Variable"]


@dataclass
class ApplyCall:
    """One call.

    Attributes:
        optimizer: it; maybe a `LossScaleOptimizer`, whose gradients come without their scale.
        pairs: gradients, or None, and what they are to move.
        sums: whether the gradients of replicas are added up in the call.
    """

    optimizer: object
    pairs: list[Pair]
    sums: bool = True


def inner_of(optimizer: object) -> object:
    """The optimizer inside of a `LossScaleOptimizer`; any other is its own."""
    return getattr(optimizer, "inner_optimizer", optimizer)
