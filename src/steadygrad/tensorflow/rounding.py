"""To float64 and back, rounding once."""

from __future__ import annotations

import tensorflow as tf

_LAST = 1 << 29
"""The last bit of a float64 that float32 keeps."""


def widen(x: tf.Tensor) -> tf.Tensor:
    """`x` in float64, complex128 where it is complex."""
    x = tf.convert_to_tensor(x)
    return tf.cast(x, tf.complex128 if x.dtype.is_complex else tf.float64)


def narrow(x: tf.Tensor, dtype: tf.DType) -> tf.Tensor:
    """A float64 or complex128 tensor rounded once to `dtype`.

    The 16-bit formats are reached by way of float32, which would round twice: the number is
    therefore cut to float32's digits first, and the last of them set where something was cut
    (rounding to odd; Boldo, Melquiond. Emulation of FMA and correctly rounded sums, 2008).
    """
    dtype = tf.as_dtype(dtype)
    if dtype.size > 2 or x.dtype != tf.float64:
        return tf.cast(x, dtype)
    bits = tf.bitcast(x, tf.int64)
    beyond = tf.bitwise.bitwise_and(bits, _LAST - 1)
    last = tf.where(tf.not_equal(beyond, 0), tf.constant(_LAST, tf.int64), tf.constant(0, tf.int64))
    odd = tf.bitcast(tf.bitwise.bitwise_or(bits - beyond, last), tf.float64)
    return tf.cast(tf.cast(odd, tf.float32), dtype)
