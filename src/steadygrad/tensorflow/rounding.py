"""To float64 and back, rounding once."""

from __future__ import annotations

from typing import Any

import tensorflow as tf


def widen(x: Any) -> Any:
    """`x` in float64, complex128 where it is complex."""
    x = tf.convert_to_tensor(x)
    return tf.cast(x, tf.complex128 if x.dtype.is_complex else tf.float64)


def narrow(x: Any, dtype: Any) -> Any:
    """A float64 or complex128 tensor rounded once to `dtype`.

    The 16-bit formats are reached by way of float32, which would round twice: the
    float32 in between is therefore rounded to odd.
    """
    dtype = tf.as_dtype(dtype)
    if dtype.size > 2 or x.dtype != tf.float64:
        return tf.cast(x, dtype)
    single = tf.cast(x, tf.float32)
    lost = x - tf.cast(single, tf.float64)
    bits = tf.bitcast(single, tf.int32)
    outward = tf.where((lost > 0) == (x > 0), 1, -1)
    move = (lost != 0) & (bits % 2 == 0) & tf.math.is_finite(single)
    odd = tf.bitcast(bits + tf.where(move, outward, 0), tf.float32)
    return tf.cast(odd, dtype)
