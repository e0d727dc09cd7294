"""What a function is traced for."""

from __future__ import annotations

import tensorflow as tf


def traced_for_xla() -> bool:
    """Whether the code that is traced now stands in a `tf.function` with ``jit_compile=True``.

    Returns:
        True there. False where it does not, or where TensorFlow does not tell: XLA may still
        compile the graph later.

    Example:
        >>> found = []
        >>> tf.function(lambda: found.append(traced_for_xla()), jit_compile=True)()
        >>> tf.function(lambda: found.append(traced_for_xla()))()
        >>> found
        [True, False]
    """
    try:  # no public name tells
        from tensorflow.python.ops.control_flow_util import GraphOrParentsInXlaContext as inside
    except ImportError:
        return False
    return not tf.executing_eagerly() and bool(inside(tf.compat.v1.get_default_graph()))
