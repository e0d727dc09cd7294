"""Reading a tensor of a graph without changing how the graph is computed.

TensorFlow reorders chains of multiplications and sums (a learning rate, a factor and a gradient)
where the results between are used nowhere else: reading such a result would give the training
other last bits. What stands at the head of such a chain is therefore computed a second time, in
float64, from what the chain starts with.
"""

from __future__ import annotations

from collections.abc import Callable

import tensorflow as tf

from steadygrad.tensorflow.rounding import narrow, widen

MOST_DEEP = 8

AGAIN: dict[str, Callable[..., tf.Tensor]] = {
    "Add": tf.add,
    "AddV2": tf.add,
    "AddN": lambda *parts: tf.add_n(parts),
    "Cast": lambda x: x,
    "Identity": lambda x: x,
    "Mul": tf.multiply,
    "Neg": tf.negative,
    "RealDiv": tf.divide,
    "Sub": tf.subtract,
}


def unread(tensor: tf.Tensor) -> tf.Tensor:
    """A tensor's values, for reading only.

    Args:
        tensor: of a graph that is being traced, or with a value.

    Returns:
        It, or in a graph a copy that is computed beside it, within half a unit in its last place.

    Example:
        >>> import tensorflow as tf
        >>> float(tf.function(lambda x: unread(3.0 * x) + 1.0)(tf.constant(2.0)))
        7.0
    """
    if tf.executing_eagerly() or not _is_chain(tensor):
        return tensor
    return narrow(_again(tensor, MOST_DEEP), tensor.dtype)


def _is_chain(tensor: tf.Tensor) -> bool:
    operation = getattr(tensor, "op", None)
    floating = tensor.dtype.is_floating
    return operation is not None and operation.type in AGAIN and floating


def _again(tensor: tf.Tensor, deep: int) -> tf.Tensor:
    if deep == 0 or not _is_chain(tensor):
        return widen(tensor)
    parts = [_again(part, deep - 1) for part in tensor.op.inputs]
    return AGAIN[tensor.op.type](*parts)
