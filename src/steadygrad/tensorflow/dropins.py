"""TensorFlow's clipping functions under TensorFlow's names, exact where TensorFlow's are not.

A norm comes back in the dtype that TensorFlow gives it, widened to float32 where that is
float16 or bfloat16, so that it can hold the figure. A non-finite norm leaves gradients as
they are, where TensorFlow turns all of them into NaN.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import tensorflow as tf

from steadygrad.errors import NoGradientsWarning, UsageError
from steadygrad.policies.base import coefficient, require_norm_type
from steadygrad.policies.stepping import measure as measure_leaves
from steadygrad.runlog.notice import warn_of_nothing, warn_user
from steadygrad.stats import GradientStats, combine_norms
from steadygrad.tensorflow import namespace as xp
from steadygrad.tensorflow.engine import Gradient, TensorFlowEngine, merged
from steadygrad.tensorflow.norms import leaf_norms
from steadygrad.tensorflow.rounding import narrow, widen

if TYPE_CHECKING:
    from numpy.typing import NDArray

_warn_of_nothing = functools.partial(
    warn_of_nothing, received="no gradients", instead="what tape.gradient(loss, variables) returns"
)


def global_norm(t_list: Sequence[Gradient | None], name: str | None = None) -> tf.Tensor:
    """The 2-norm of several tensors taken as one vector, exact in every dtype.

    Args:
        t_list: tensors, `tf.IndexedSlices` or None.
        name: of the operation.

    Returns:
        0-d; float64 where a tensor is, else float32 (inf for a norm over 3.4e38).

    Raises:
        UsageError: something else than gradients is among them.
        TypeError: ``t_list`` is no sequence.

    Example:
        >>> import tensorflow as tf
        >>> round(float(global_norm([tf.constant([3e20, 4e20])])) / 1e20, 6)
        5.0
    """
    with tf.name_scope(name or "global_norm"):
        tensors = [g for g in _gradients(t_list, "global_norm") if g is not None]
        if not tensors:
            _warn_of_nothing("global_norm", "measured")
        return tf.cast(_total([merged(t) for t in tensors]), _figure_dtype(tensors))


def clip_by_global_norm(
    t_list: Sequence[Gradient | None],
    clip_norm: float | tf.Tensor,
    use_norm: float | tf.Tensor | None = None,
    name: str | None = None,
) -> tuple[list[Gradient | None], tf.Tensor]:
    """Scale tensors by ``min(1, clip_norm / global_norm)``.

    Args:
        t_list: tensors, `tf.IndexedSlices` (scaled as they are) or None (passed through).
        clip_norm: the threshold, over 0; a float or a 0-d tensor.
        use_norm: a norm to use in place of the tensors' own; where it is not finite the tensors
            are left as they are.
        name: of the operation.

    Returns:
        The scaled tensors, and the norm before.

    Raises:
        UsageError: a threshold that is not over 0, or a norm under 0, where its value is known;
            something else than gradients is among the tensors.
        TypeError: ``t_list`` is no sequence.

    Example:
        >>> import tensorflow as tf
        >>> clipped, norm = clip_by_global_norm([tf.constant([3.0, 4.0]), None], 1.0)
        >>> clipped[0].numpy(), float(norm)
        (array([0.6, 0.8], dtype=float32), 5.0)

    References:
        Pascanu, Mikolov, Bengio. On the difficulty of training recurrent neural
        networks. ICML 2013.
    """
    limit = _single(_limit(clip_norm, "clip_norm"), "clip_norm", clip_norm)
    with tf.name_scope(name or "clip_by_global_norm"):
        tensors = _gradients(t_list, "clip_by_global_norm")
        there = [g for g in tensors if g is not None]
        if not there:
            _warn_of_nothing("clip_by_global_norm", "clipped")
        own = use_norm is None
        total = _total([merged(t) for t in there]) if own else _norm_given(use_norm)
        coef = coefficient(xp, total, limit)
        moved = iter(TensorFlowEngine().scaled([_dense(_values(g)) for g in there], coef))
        scaled = [None if g is None else _with_values(g, next(moved)) for g in tensors]
        return scaled, tf.cast(total, _figure_dtype(there))


def clip_by_norm(
    t: Gradient,
    clip_norm: float | tf.Tensor,
    axes: int | Sequence[int] | None = None,
    name: str | None = None,
) -> Gradient:
    """Scale one tensor, or its slices over ``axes``, by ``min(1, clip_norm / norm)``.

    Args:
        t: a tensor or `tf.IndexedSlices` (duplicates are added up for the norm).
        clip_norm: the threshold, over 0; a float or a tensor that broadcasts.
        axes: axes that a norm runs over; all by default.
        name: of the operation.

    Returns:
        A tensor like ``t``.

    Raises:
        UsageError: a threshold that is not over 0, where its value is known; no gradient.

    Example:
        >>> import tensorflow as tf
        >>> clip_by_norm(tf.constant([[3.0, 4.0], [0.3, 0.4]]), 1.0, axes=[1]).numpy()
        array([[0.6, 0.8],
               [0.3, 0.4]], dtype=float32)
    """
    limit = _limit(clip_norm, "clip_norm")
    _require_one(t, "clip_by_norm", "clip_norm")
    _require_gradient(t, "clip_by_norm")
    with tf.name_scope(name or "clip_by_norm"):
        if axes is None:
            coef = coefficient(xp, _total([merged(t)]), limit)
            if coef.ndim == 0:
                return _on_values(t, lambda values: _scaled(values, coef))
        size = tf.abs(widen(tf.convert_to_tensor(t)))
        top = tf.reduce_max(size, axis=axes, keepdims=True)
        unit = tf.where(tf.math.is_finite(top) & (top > 0), top, tf.ones_like(top))
        norms = unit * tf.sqrt(tf.reduce_sum((size / unit) ** 2, axis=axes, keepdims=True))
        limit = tf.broadcast_to(limit, tf.broadcast_dynamic_shape(tf.shape(limit), tf.shape(norms)))
        coef = coefficient(xp, norms * tf.ones_like(limit), limit)
        if isinstance(t, tf.IndexedSlices):
            by = coef if coef.shape[0] == 1 else tf.gather(coef, t.indices)
            return _with_values(t, _scaled_by_slices(t.values, by))
        return _scaled_by_slices(tf.convert_to_tensor(t), coef)


def clip_by_value(
    t: Gradient,
    clip_value_min: float | tf.Tensor,
    clip_value_max: float | tf.Tensor,
    name: str | None = None,
) -> Gradient:
    """Clamp every element.

    Args:
        t: a tensor or `tf.IndexedSlices`.
        clip_value_min: least value.
        clip_value_max: largest value.
        name: of the operation.

    Returns:
        A tensor like ``t``; NaN stays NaN.

    Raises:
        UsageError: the least is over the largest, or one is NaN or no number, where they are
            known; no tensor.

    Example:
        >>> import tensorflow as tf
        >>> clip_by_value(tf.constant([-2.0, 0.25]), -0.5, 0.5).numpy()
        array([-0.5 ,  0.25], dtype=float32)
    """
    _require_one(t, "clip_by_value", "clip_value_min, clip_value_max")
    low = _constant(clip_value_min, "clip_value_min")
    high = _constant(clip_value_max, "clip_value_max")
    for bound in (low, high):
        if bound is not None and np.any(np.isnan(bound)):
            raise UsageError("clip_by_value: a bound is NaN, and would make every element NaN")
    if low is not None and high is not None and np.any(np.greater(low, high)):
        raise UsageError(
            f"clip_by_value: clip_value_min {low} is over clip_value_max {high}; swap them"
        )

    def clamp(values: tf.Tensor) -> tf.Tensor:
        return tf.clip_by_value(values, clip_value_min, clip_value_max, name)

    return _on_values(t, clamp)


def measure(
    gradients: Sequence[Gradient | None],
    names: Sequence[str] | None = None,
    norm_type: float = 2.0,
) -> GradientStats:
    """Read gradients once; eager or inside `tf.function`.

    Args:
        gradients: tensors, `tf.IndexedSlices` or None (left out).
        names: one name each; by default their places.
        norm_type: p >= 0.5, or inf.

    Returns:
        The stats, as TensorFlow tensors.

    Raises:
        UsageError: something else than gradients is among them, other names than gradients are
            given, or a p under 0.5.
        TypeError: ``gradients`` is no sequence.

    Example:
        >>> import tensorflow as tf
        >>> stats = measure([tf.constant([3.0, 4.0, 0.0])], names=["w"])
        >>> float(stats.total_norm), int(stats.zeros[0])
        (5.0, 1)
    """
    require_norm_type("measure", norm_type)
    listed = _gradients(gradients, "measure")
    all_names = [str(place) for place in range(len(listed))] if names is None else list(names)
    if len(all_names) != len(listed):
        raise UsageError(
            f"measure was given {len(listed)} gradients and {len(all_names)} names; type "
            "names=[v.name for v in variables], with the variables of the gradients"
        )
    there = [(n, g) for n, g in zip(all_names, listed, strict=True) if g is not None]
    if not there:
        _warn_of_nothing("measure", "measured")
    leaves = [_values(merged(g)) for _, g in there]
    return measure_leaves(TensorFlowEngine(), leaves, tuple(n for n, _ in there), norm_type, True)


def _gradients(t_list: Sequence[Gradient | None], caller: str) -> list[Gradient | None]:
    """A list of gradients and None.

    Raises:
        UsageError: something else is among them.
        TypeError: no sequence.
    """
    spread = hasattr(t_list, "__iter__") and not isinstance(t_list, (str, bytes, Mapping))
    if tf.is_tensor(t_list) or not spread:
        hint = "; type list(t_list.values())" if isinstance(t_list, Mapping) else ""
        raise TypeError(f"t_list must be a sequence of tensors, got {type(t_list).__name__}{hint}")
    gradients = list(t_list)
    for gradient in gradients:
        if gradient is not None:
            _require_gradient(gradient, caller)
    return gradients


def _require_gradient(gradient: object, caller: str) -> None:
    """Refuse what is no floating tensor; others fail in TensorFlow, or are cut down to 0."""
    if isinstance(gradient, (list, tuple)):
        raise UsageError(
            f"{caller} was given a {type(gradient).__name__} where a gradient should be. Of pairs "
            "of gradients and variables, type [gradient for gradient, _ in pairs]"
        )
    if isinstance(gradient, tf.RaggedTensor):
        raise UsageError(f"{caller} was given a RaggedTensor; type its .flat_values")
    if isinstance(gradient, (str, bytes)):
        raise UsageError(f"{caller} was given {gradient!r} where a gradient should be")
    dtype = tf.as_dtype(getattr(gradient, "dtype", tf.float32))
    if not (dtype.is_floating or dtype.is_complex):
        raise UsageError(
            f"{caller} was given {dtype.name} values, and gradients are floating; type "
            "tf.cast(gradient, tf.float32)"
        )


def _require_one(
    tensor: Gradient | list[object] | tuple[object, ...] | None, caller: str, bounds: str
) -> None:
    """Refuse a list of tensors, which TensorFlow would make one tensor of."""
    if tensor is None:
        raise UsageError(f"{caller} was given None: leave out variables without a gradient")
    if not isinstance(tensor, (list, tuple)):
        return
    if not all(isinstance(x, (int, float, list)) for x in tensor or [None]):
        raise UsageError(
            f"{caller} takes one tensor, got a {type(tensor).__name__}; type "
            f"[{caller}(g, {bounds}) for g in gradients]"
        )


def _constant(value: float | tf.Tensor, name: str) -> NDArray[np.float64] | None:
    """A number's value, where it is known before anything runs.

    Raises:
        UsageError: no number.
    """
    if isinstance(value, tf.Variable):
        value = value.numpy() if tf.executing_eagerly() else value.value()
    constant = tf.get_static_value(value) if tf.is_tensor(value) else value
    if constant is None and tf.is_tensor(value):
        return None
    try:
        return np.asarray("" if constant is None else constant, np.float64)
    except (TypeError, ValueError):
        raise UsageError(
            f"{name} must be a number, got {value!r}; for example {name}=1.0"
        ) from None


def _limit(value: float | tf.Tensor, name: str) -> tf.Tensor:
    """A threshold in float64; one that is known only later is held at 0 or more."""
    constant = _constant(value, name)
    if constant is None:
        return tf.maximum(tf.cast(value, tf.float64), 0.0)
    if not np.all(constant > 0):
        raise UsageError(f"{name} must be over 0, got {constant}; for example {name}=1.0")
    return tf.constant(constant, tf.float64)  # a cast would go through float32


def _single(number: tf.Tensor, name: str, received: object) -> tf.Tensor:
    """A tensor of one element as a 0-d one."""
    if number.shape.rank == 0 or number.shape.num_elements() is None:
        return number
    if number.shape.num_elements() != 1:
        raise UsageError(f"{name} must be one number, got {received!r}; for example {name}=1.0")
    return tf.reshape(number, [])


def _norm_given(use_norm: float | tf.Tensor) -> tf.Tensor:
    constant = _constant(use_norm, "use_norm")
    if constant is not None and np.any(constant < 0):
        raise UsageError(
            f"use_norm must be 0 or more, got {constant}; leave it out, or type "
            "use_norm=global_norm(gradients)"
        )
    if constant is not None and not np.all(np.isfinite(constant)):
        warn_user(
            f"clip_by_global_norm was given use_norm={constant}, by which nothing can be scaled: "
            "the gradients are left as they are",
            NoGradientsWarning,
        )
    if constant is None:
        return _single(tf.cast(use_norm, tf.float64), "use_norm", use_norm)
    return _single(tf.constant(constant, tf.float64), "use_norm", use_norm)


def _values(gradient: Gradient) -> tf.Tensor:
    return gradient.values if isinstance(gradient, tf.IndexedSlices) else gradient


def _total(gradients: Sequence[Gradient]) -> tf.Tensor:
    if not gradients:
        return tf.zeros((), tf.float64)
    return combine_norms(xp, leaf_norms([_values(g) for g in gradients], counts=False)[0], 2.0)


def _figure_dtype(tensors: Sequence[Gradient]) -> tf.DType:
    double = any(tf.convert_to_tensor(_values(t)).dtype.size > 4 for t in tensors)
    return tf.float64 if double else tf.float32


def _scaled(tensor: tf.Tensor, coef: tf.Tensor) -> tf.Tensor:
    return TensorFlowEngine().scaled([tensor], coef)[0]


def _scaled_by_slices(tensor: tf.Tensor, coef: tf.Tensor) -> tf.Tensor:
    wide = widen(tensor)
    return tf.where(coef < 1.0, narrow(wide * tf.cast(coef, wide.dtype), tensor.dtype), tensor)


def _dense(values: tf.Tensor) -> tf.Tensor:
    return tf.convert_to_tensor(values)


def _with_values(gradient: Gradient, values: tf.Tensor) -> Gradient:
    """A tensor, or IndexedSlices with new values."""
    if isinstance(gradient, tf.IndexedSlices):
        return tf.IndexedSlices(values, gradient.indices, gradient.dense_shape)
    return values


def _on_values(gradient: Gradient, change: Callable[[tf.Tensor], tf.Tensor]) -> Gradient:
    """Apply ``change`` to a tensor, or to the values of IndexedSlices."""
    return _with_values(gradient, change(_dense(_values(gradient))))
