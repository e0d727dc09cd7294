"""TensorFlow under the names that policies use: exactly `steadygrad.policies.base.NAMESPACE`.

`tf.experimental.numpy` lacks some of them and promotes dtypes by rules of its own; here
Python numbers take the dtype of the tensor they meet, as in the other libraries.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

float32 = tf.float32
abs = tf.abs
all = tf.reduce_all
any = tf.reduce_any
exp = tf.exp
floor = tf.floor
isfinite = tf.math.is_finite
isnan = tf.math.is_nan
log = tf.math.log
ones_like = tf.ones_like
zeros_like = tf.zeros_like
sign = tf.sign
sort = tf.sort
sqrt = tf.sqrt
logical_and = tf.logical_and
logical_or = tf.logical_or
logical_not = tf.logical_not


def _axis(reduce: Callable[..., Any]) -> Callable[..., Any]:
    def over(x: Any, axis: Any = None, keepdims: bool = False) -> Any:
        return reduce(x, axis=axis, keepdims=keepdims)

    return over


def _or_nan(reduce: Callable[..., Any]) -> Callable[..., Any]:
    """NaN wins, as in NumPy: XLA's own reduction drops it."""

    def over(x: Any, axis: Any = None, keepdims: bool = False) -> Any:
        found = reduce(x, axis=axis, keepdims=keepdims)
        if not x.dtype.is_floating:
            return found
        broken = tf.reduce_any(tf.math.is_nan(x), axis=axis, keepdims=keepdims)
        return tf.where(broken, tf.constant(float("nan"), x.dtype), found)

    return over


max = _or_nan(tf.reduce_max)
min = _or_nan(tf.reduce_min)
mean = _axis(tf.reduce_mean)
sum = _axis(tf.reduce_sum)


def arange(*bounds: int) -> Any:
    return tf.range(*bounds)


def asarray(value: Any, dtype: Any = None) -> Any:
    """A tensor; Python floats become float64, so that nothing is lost before it meets others."""
    if tf.is_tensor(value):
        return value if dtype is None else tf.cast(value, dtype)
    return tf.convert_to_tensor(np.asarray(value), dtype)


def astype(x: Any, dtype: Any) -> Any:
    return tf.cast(x, dtype)


def clip(x: Any, low: Any, high: Any) -> Any:
    return tf.clip_by_value(x, _number(low, x.dtype), _number(high, x.dtype))


def concat(arrays: Any, axis: int = 0) -> Any:
    return tf.concat(arrays, axis)


def full(shape: tuple[int, ...], value: Any, dtype: Any = None) -> Any:
    return tf.fill(shape, _number(value, dtype or tf.float64))


def full_like(x: Any, value: Any) -> Any:
    return tf.fill(tf.shape(x), _number(value, x.dtype))


def maximum(x: Any, y: Any) -> Any:
    return tf.maximum(*_alike(x, y))


def minimum(x: Any, y: Any) -> Any:
    return tf.minimum(*_alike(x, y))


def ones(shape: tuple[int, ...], dtype: Any = None) -> Any:
    return tf.ones(shape, dtype or tf.float64)


def zeros(shape: tuple[int, ...], dtype: Any = None) -> Any:
    return tf.zeros(shape, dtype or tf.float64)


def searchsorted(rising: Any, values: Any, side: str = "left") -> Any:
    flat = tf.searchsorted(rising, tf.reshape(values, (-1,)), side=side)
    return tf.reshape(flat, tf.shape(values))


def stack(arrays: Any, axis: int = 0) -> Any:
    return tf.stack(arrays, axis)


def take(x: Any, indices: Any, axis: int = 0) -> Any:
    return tf.gather(x, indices, axis=axis)


def where(condition: Any, x: Any, y: Any) -> Any:
    return tf.where(condition, *_alike(x, y))


def _alike(x: Any, y: Any) -> tuple[Any, Any]:
    """Both as tensors of one dtype: a Python number takes the other's."""
    if tf.is_tensor(x):
        return x, y if tf.is_tensor(y) else _number(y, x.dtype)
    if tf.is_tensor(y):
        return _number(x, y.dtype), y
    return tf.convert_to_tensor(x), tf.convert_to_tensor(y)


def _number(value: Any, dtype: Any) -> Any:
    """A number as a tensor of `dtype`; `tf.cast` would take a Python float through float32."""
    return tf.cast(value, dtype) if tf.is_tensor(value) else tf.constant(value, dtype)
