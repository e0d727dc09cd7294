"""TensorFlow under the names that policies use: exactly `steadygrad.policies.base.NAMESPACE`.

`tf.experimental.numpy` lacks some of them and promotes dtypes by rules of its own; here
Python numbers take the dtype of the tensor they meet, as in the other libraries.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeAlias, TypeGuard

import numpy as np
import tensorflow as tf

if TYPE_CHECKING:
    from steadygrad.typing import Axes


_Reduction: TypeAlias = Callable[..., tf.Tensor]
"""A reduction over axes, as ``tf.reduce_sum`` is called."""

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


def _axis(reduce: _Reduction) -> _Reduction:
    def over(x: tf.Tensor, axis: Axes = None, keepdims: bool = False) -> tf.Tensor:
        return reduce(x, axis=axis, keepdims=keepdims)

    return over


def _or_nan(reduce: _Reduction) -> _Reduction:
    """NaN wins, as in NumPy: XLA's own reduction drops it."""

    def over(x: tf.Tensor, axis: Axes = None, keepdims: bool = False) -> tf.Tensor:
        reduced = reduce(x, axis=axis, keepdims=keepdims)
        if not x.dtype.is_floating:
            return reduced
        broken = tf.reduce_any(tf.math.is_nan(x), axis=axis, keepdims=keepdims)
        return tf.where(broken, tf.constant(float("nan"), x.dtype), reduced)

    return over


max = _or_nan(tf.reduce_max)
min = _or_nan(tf.reduce_min)
mean = _axis(tf.reduce_mean)
sum = _axis(tf.reduce_sum)


def arange(*bounds: int) -> tf.Tensor:
    return tf.range(*bounds)


def asarray(value: tf.Tensor | float | Sequence[float], dtype: tf.DType | None = None) -> tf.Tensor:
    """A tensor; Python floats become float64, so that nothing is lost before it meets others."""
    if tf.is_tensor(value):
        return value if dtype is None else tf.cast(value, dtype)
    return tf.convert_to_tensor(np.asarray(value), dtype)


def astype(x: tf.Tensor, dtype: tf.DType) -> tf.Tensor:
    return tf.cast(x, dtype)


def clip(x: tf.Tensor, low: tf.Tensor | float, high: tf.Tensor | float) -> tf.Tensor:
    return tf.clip_by_value(x, _number(low, x.dtype), _number(high, x.dtype))


def concat(arrays: Sequence[tf.Tensor], axis: int = 0) -> tf.Tensor:
    return tf.concat(arrays, axis)


def full(
    shape: tuple[int, ...], value: tf.Tensor | float, dtype: tf.DType | None = None
) -> tf.Tensor:
    return tf.fill(shape, _number(value, dtype or tf.float64))


def full_like(x: tf.Tensor, value: tf.Tensor | float) -> tf.Tensor:
    return tf.fill(tf.shape(x), _number(value, x.dtype))


def maximum(x: tf.Tensor | float, y: tf.Tensor | float) -> tf.Tensor:
    return tf.maximum(*_alike(x, y))


def minimum(x: tf.Tensor | float, y: tf.Tensor | float) -> tf.Tensor:
    return tf.minimum(*_alike(x, y))


def ones(shape: tuple[int, ...], dtype: tf.DType | None = None) -> tf.Tensor:
    return tf.ones(shape, dtype or tf.float64)


def zeros(shape: tuple[int, ...], dtype: tf.DType | None = None) -> tf.Tensor:
    return tf.zeros(shape, dtype or tf.float64)


def searchsorted(rising: tf.Tensor, values: tf.Tensor, side: str = "left") -> tf.Tensor:
    flat = tf.searchsorted(rising, tf.reshape(values, (-1,)), side=side)
    return tf.reshape(flat, tf.shape(values))


def stack(arrays: Sequence[tf.Tensor], axis: int = 0) -> tf.Tensor:
    return tf.stack(arrays, axis)


def take(x: tf.Tensor, indices: tf.Tensor, axis: int = 0) -> tf.Tensor:
    return tf.gather(x, indices, axis=axis)


def where(condition: tf.Tensor, x: tf.Tensor | float, y: tf.Tensor | float) -> tf.Tensor:
    return tf.where(condition, *_alike(x, y))


def _alike(x: tf.Tensor | float, y: tf.Tensor | float) -> tuple[tf.Tensor, tf.Tensor]:
    """Both as tensors of one dtype: a Python number takes the other's."""
    if _is_tensor(x):
        return x, y if tf.is_tensor(y) else _number(y, x.dtype)
    if _is_tensor(y):
        return _number(x, y.dtype), y
    return tf.convert_to_tensor(x), tf.convert_to_tensor(y)


def _is_tensor(x: tf.Tensor | float) -> TypeGuard[tf.Tensor]:
    return bool(tf.is_tensor(x))


def _number(value: tf.Tensor | float, dtype: tf.DType) -> tf.Tensor:
    """A number as a tensor of `dtype`; `tf.cast` would take a Python float through float32."""
    return tf.cast(value, dtype) if tf.is_tensor(value) else tf.constant(value, dtype)
