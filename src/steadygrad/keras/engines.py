"""The `Engine` of whichever backend Keras runs on, found when the first optimizer is attached.

Only the backend's own module is imported: a process that trains on JAX must not load
TensorFlow or torch for this.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import keras
import numpy as np

from steadygrad.errors import AttachError


class JaxBackend:
    """Keras on JAX: run, then select, since tracing knows no skipping of assignments."""

    float_dtype, int_dtype = "float32", "int32"

    def __init__(self) -> None:
        from steadygrad.jax.engine import JaxEngine

        self.engine: Any = JaxEngine()

    def leaf(self, gradient: Any) -> Any:
        return gradient

    def unread(self, gradient: Any) -> Any:
        return gradient

    def quotient(self, gradient: Any, scale: Any) -> Any:
        return gradient / scale

    def dense(self, gradient: Any) -> Any:
        return gradient

    def is_known(self, value: Any) -> bool:
        import jax

        return not isinstance(value, jax.core.Tracer)

    def relike(self, gradient: Any, leaf: Any) -> Any:
        return leaf

    def reduced(self, gradients: Sequence[Any]) -> tuple[list[Any], bool]:
        return list(gradients), False

    def unless(self, skip: Any, run: Callable[[], None], variables: Sequence[Any]) -> None:
        import jax.numpy as jnp

        before = [variable.value for variable in variables]
        run()
        for variable, old in zip(variables, before, strict=True):
            variable.assign(jnp.where(skip, old, variable.value))

    def value(self, variable: Any) -> Any:
        return variable.value

    def pack(self, figures: Sequence[Any], dtype: str) -> Any:
        import jax.numpy as jnp

        return jnp.stack([jnp.asarray(figure).astype(dtype) for figure in figures])


class TensorFlowBackend:
    """Keras on TensorFlow: a conditional around the step, outside of the replicas' code."""

    float_dtype, int_dtype = "float64", "int64"

    def __init__(self) -> None:
        from steadygrad.tensorflow.engine import TensorFlowEngine

        self.engine: Any = TensorFlowEngine()

    def leaf(self, gradient: Any) -> Any:
        from steadygrad.tensorflow.engine import merged

        return getattr(merged(gradient), "values", None) if _is_sparse(gradient) else gradient

    def unread(self, gradient: Any) -> Any:
        """A gradient for reading only: the step must be computed as if nobody read it."""
        import tensorflow as tf

        from steadygrad.tensorflow.shadow import unread

        if not _is_sparse(gradient):
            return unread(gradient)
        return tf.IndexedSlices(unread(gradient.values), gradient.indices, gradient.dense_shape)

    def quotient(self, gradient: Any, scale: Any) -> Any:
        import tensorflow as tf

        from steadygrad.tensorflow.rounding import narrow, widen

        if _is_sparse(gradient):
            values = self.quotient(gradient.values, scale)
            return tf.IndexedSlices(values, gradient.indices, gradient.dense_shape)
        return narrow(widen(gradient) / tf.cast(scale, tf.float64), gradient.dtype)

    def dense(self, gradient: Any) -> Any:
        from steadygrad.tensorflow.engine import densified

        return densified(gradient)

    def is_known(self, value: Any) -> bool:
        import tensorflow as tf

        return bool(tf.executing_eagerly())

    def relike(self, gradient: Any, leaf: Any) -> Any:
        import tensorflow as tf

        from steadygrad.tensorflow.engine import merged

        if not _is_sparse(gradient):
            return leaf
        return tf.IndexedSlices(leaf, merged(gradient).indices, gradient.dense_shape)

    def reduced(self, gradients: Sequence[Any]) -> tuple[list[Any], bool]:
        """Gradients summed over the replicas: Keras itself would clip each replica's part."""
        import tensorflow as tf

        from steadygrad.tensorflow.engine import densified

        context = tf.distribute.get_replica_context()
        if context is None or tf.distribute.get_strategy().num_replicas_in_sync == 1:
            return list(gradients), False
        dense = [densified(gradient) for gradient in gradients]
        return list(context.all_reduce(tf.distribute.ReduceOp.SUM, dense)), True

    def unless(self, skip: Any, run: Callable[[], None], variables: Sequence[Any]) -> None:
        import tensorflow as tf

        def go() -> Any:
            run()
            return tf.no_op()

        if tf.distribute.get_strategy().num_replicas_in_sync == 1:
            tf.cond(skip, tf.no_op, go)
            return

        def across(distribution: Any, skips: Any) -> None:
            first = distribution.experimental_local_results(skips)[0]  # the same on all

            def on_each() -> Any:
                distribution.extended.call_for_each_replica(run)
                return tf.no_op()

            tf.cond(first, tf.no_op, on_each)

        tf.distribute.get_replica_context().merge_call(across, args=(skip,))

    def value(self, variable: Any) -> Any:
        import tensorflow as tf

        return tf.convert_to_tensor(variable.value)

    def pack(self, figures: Sequence[Any], dtype: str) -> Any:
        import tensorflow as tf

        return tf.stack([tf.cast(figure, dtype) for figure in figures])


class TorchBackend:
    """Keras on torch: eager, so a step is skipped by reading one bool."""

    float_dtype, int_dtype = "float64", "int64"

    def __init__(self) -> None:
        self.engine: Any = TorchEngine()

    def leaf(self, gradient: Any) -> Any:
        return gradient.detach()

    def unread(self, gradient: Any) -> Any:
        return gradient

    def quotient(self, gradient: Any, scale: Any) -> Any:
        return gradient / scale

    def dense(self, gradient: Any) -> Any:
        return gradient.detach()

    def is_known(self, value: Any) -> bool:
        return True

    def relike(self, gradient: Any, leaf: Any) -> Any:
        return leaf

    def reduced(self, gradients: Sequence[Any]) -> tuple[list[Any], bool]:
        return list(gradients), False

    def unless(self, skip: Any, run: Callable[[], None], variables: Sequence[Any]) -> None:
        if not bool(skip):
            run()

    def value(self, variable: Any) -> Any:
        return variable.value.detach()

    def pack(self, figures: Sequence[Any], dtype: str) -> Any:
        import torch

        kind = getattr(torch, dtype)
        return torch.stack([torch.as_tensor(figure).detach().to(kind) for figure in figures])


class TorchEngine:
    """The `Engine` of torch tensors, through the one-read kernel."""

    def __init__(self) -> None:
        import array_api_compat.torch as torch_namespace

        self.xp: Any = torch_namespace

    def scope(self) -> Any:
        return nullcontext()

    def norms(self, leaves: Sequence[Any], norm_type: float) -> tuple[Any, Any]:
        norms, _, nonfinite, _ = self.figures(leaves, norm_type)
        return norms, nonfinite

    def figures(self, leaves: Sequence[Any], norm_type: float) -> tuple[Any, Any, Any, Any]:
        import torch

        from steadygrad import kernels

        read = kernels.read(leaves, norm_type)
        norms, max_abs = torch.as_tensor(read.norms), torch.as_tensor(read.max_abs)
        return norms, max_abs, torch.as_tensor(read.nonfinite), torch.as_tensor(read.zeros)

    def widen(self, x: Any) -> Any:
        import torch

        return torch.as_tensor(x).to(torch.float64)

    def narrow(self, x: Any, like: Any) -> Any:
        return x.to(like.dtype)

    def scaled(self, leaves: Sequence[Any], coef: Any) -> list[Any]:
        from steadygrad import kernels

        copies = [leaf.clone() for leaf in leaves]  # Keras' caller may still hold the gradients
        kernels.scale_(copies, coef)
        return copies

    def held(self, x: Any) -> Any:
        return x

    def cleaned(self, leaf: Any) -> Any:
        return leaf.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)

    def size(self, leaf: Any) -> int:
        return int(leaf.numel())


_BACKENDS: dict[str, Callable[[], Any]] = {
    "jax": JaxBackend,
    "tensorflow": TensorFlowBackend,
    "torch": TorchBackend,
}


def current() -> Any:
    """What Keras runs on in this process.

    Raises:
        AttachError: a backend that cannot train.
    """
    name = keras.backend.backend()
    if name not in _BACKENDS:
        raise AttachError(
            f"Keras runs on the {name} backend, which does not train; set KERAS_BACKEND to "
            "tensorflow, jax or torch before Keras is imported"
        )
    return _BACKENDS[name]()


def to_numpy(variable: Any) -> Any:
    """A Keras variable's value on the host."""
    return np.asarray(keras.ops.convert_to_numpy(variable.value))


def _is_sparse(gradient: Any) -> bool:
    return type(gradient).__name__ == "IndexedSlices"
