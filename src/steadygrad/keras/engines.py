"""The array library of whichever backend Keras runs on, found when the first optimizer is attached.

Only the backend's own module is imported: a process that trains on JAX must not load
TensorFlow or torch for this.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Protocol, cast

import keras
import numpy as np

from steadygrad.errors import AttachError

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    import jax
    import tensorflow as tf
    import torch
    from numpy.typing import NDArray

    from steadygrad.policies.stepping import ArrayLibrary
    from steadygrad.tensorflow.engine import Gradient
    from steadygrad.typing import Array, Namespace, Number


class Backend(Protocol):
    """What Keras' array library must do beside measuring and scaling, which its `engine` does.

    A gradient is an array, or TensorFlow's slices of one.
    """

    @property
    def engine(self) -> ArrayLibrary:
        """Measures and scales."""

    @property
    def float_dtype(self) -> str:
        """The widest that variables can have."""

    @property
    def int_dtype(self) -> str:
        """The widest that variables can have."""

    def leaf(self, gradient: Array) -> Array:
        """The elements that count in a norm."""

    def unread(self, gradient: Array) -> Array:
        """A gradient for reading only: the step is computed as if nobody read it."""

    def quotient(self, gradient: Array, scale: Number) -> Array:
        """A gradient over a loss scale, rounded once."""

    def dense(self, gradient: Array) -> Array:
        """All of a gradient's elements."""

    def is_known(self, value: Array) -> bool:
        """Whether an array has a value now, as nothing that is traced has."""

    def relike(self, gradient: Array, leaf: Array) -> Array:
        """New elements in the form of a gradient."""

    def reduced(self, gradients: Sequence[Array]) -> tuple[list[Array], bool]:
        """Gradients summed over replicas, and whether there was anything to sum."""

    def unless(
        self, skip: Array, run: Callable[[], None], variables: Sequence[keras.Variable]
    ) -> None:
        """Run, and leave these variables as they were where ``skip`` holds."""

    def value(self, variable: keras.Variable) -> Array:
        """A variable's value."""

    def pack(self, figures: Sequence[Number], dtype: str) -> Array:
        """Figures of one shape as rows of one array."""


class JaxBackend:
    """Keras on JAX: run, then select, since tracing knows no skipping of assignments."""

    float_dtype, int_dtype = "float32", "int32"

    def __init__(self) -> None:
        from steadygrad.jax.engine import JaxEngine

        self.engine = JaxEngine()

    def leaf(self, gradient: jax.Array) -> jax.Array:
        return gradient

    def unread(self, gradient: jax.Array) -> jax.Array:
        return gradient

    def quotient(self, gradient: jax.Array, scale: jax.Array) -> jax.Array:
        return gradient / scale

    def dense(self, gradient: jax.Array) -> jax.Array:
        return gradient

    def is_known(self, value: jax.Array) -> bool:
        import jax

        return not isinstance(value, jax.core.Tracer)

    def relike(self, gradient: jax.Array, leaf: jax.Array) -> jax.Array:
        return leaf

    def reduced(self, gradients: Sequence[jax.Array]) -> tuple[list[jax.Array], bool]:
        return list(gradients), False

    def unless(
        self, skip: jax.Array, run: Callable[[], None], variables: Sequence[keras.Variable]
    ) -> None:
        import jax.numpy as jnp

        before = [variable.value for variable in variables]
        run()
        for variable, old in zip(variables, before, strict=True):
            variable.assign(jnp.where(skip, old, variable.value))

    def value(self, variable: keras.Variable) -> jax.Array:
        return variable.value

    def pack(self, figures: Sequence[jax.Array], dtype: str) -> jax.Array:
        import jax.numpy as jnp

        return jnp.stack([jnp.asarray(figure).astype(dtype) for figure in figures])


class TensorFlowBackend:
    """Keras on TensorFlow: a conditional around the step, outside of the replicas' code."""

    float_dtype, int_dtype = "float64", "int64"

    def __init__(self) -> None:
        from steadygrad.tensorflow.engine import TensorFlowEngine

        self.engine = TensorFlowEngine()

    def leaf(self, gradient: Gradient) -> tf.Tensor:
        from steadygrad.tensorflow.engine import merged

        return getattr(merged(gradient), "values", None) if _is_sparse(gradient) else gradient

    def unread(self, gradient: Gradient) -> Gradient:
        """A gradient for reading only: the step must be computed as if nobody read it."""
        import tensorflow as tf

        from steadygrad.tensorflow.shadow import unread

        if not _is_sparse(gradient):
            return unread(gradient)
        return tf.IndexedSlices(unread(gradient.values), gradient.indices, gradient.dense_shape)

    def quotient(self, gradient: Gradient, scale: tf.Tensor) -> Gradient:
        import tensorflow as tf

        from steadygrad.tensorflow.rounding import narrow, widen

        if _is_sparse(gradient):
            values = self.quotient(gradient.values, scale)
            return tf.IndexedSlices(values, gradient.indices, gradient.dense_shape)
        return narrow(widen(gradient) / tf.cast(scale, tf.float64), gradient.dtype)

    def dense(self, gradient: Gradient) -> tf.Tensor:
        from steadygrad.tensorflow.engine import densified

        return densified(gradient)

    def is_known(self, value: tf.Tensor) -> bool:
        import tensorflow as tf

        return bool(tf.executing_eagerly())

    def relike(self, gradient: Gradient, leaf: tf.Tensor) -> Gradient:
        from steadygrad.tensorflow.engine import relike

        return relike(gradient, leaf)

    def reduced(self, gradients: Sequence[Gradient]) -> tuple[list[Gradient], bool]:
        """Gradients summed over the replicas: Keras itself would clip each replica's part."""
        from steadygrad.tensorflow.replicas import reduced

        return reduced(gradients)

    def unless(
        self, skip: tf.Tensor, run: Callable[[], None], variables: Sequence[keras.Variable]
    ) -> None:
        from steadygrad.tensorflow.replicas import unless

        unless(skip, run)

    def value(self, variable: keras.Variable) -> tf.Tensor:
        import tensorflow as tf

        return tf.convert_to_tensor(variable.value)

    def pack(self, figures: Sequence[tf.Tensor], dtype: str) -> tf.Tensor:
        import tensorflow as tf

        return tf.stack([tf.cast(figure, dtype) for figure in figures])


class TorchBackend:
    """Keras on torch: eager, so a step is skipped by reading one bool."""

    float_dtype, int_dtype = "float64", "int64"

    def __init__(self) -> None:
        self.engine = TorchEngine()

    def leaf(self, gradient: torch.Tensor) -> torch.Tensor:
        return gradient.detach()

    def unread(self, gradient: torch.Tensor) -> torch.Tensor:
        return gradient

    def quotient(self, gradient: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        return gradient / scale

    def dense(self, gradient: torch.Tensor) -> torch.Tensor:
        return gradient.detach()

    def is_known(self, value: torch.Tensor) -> bool:
        return True

    def relike(self, gradient: torch.Tensor, leaf: torch.Tensor) -> torch.Tensor:
        return leaf

    def reduced(self, gradients: Sequence[torch.Tensor]) -> tuple[list[torch.Tensor], bool]:
        return list(gradients), False

    def unless(
        self, skip: torch.Tensor, run: Callable[[], None], variables: Sequence[keras.Variable]
    ) -> None:
        if not bool(skip):
            run()

    def value(self, variable: keras.Variable) -> torch.Tensor:
        value: torch.Tensor = variable.value.detach()
        return value

    def pack(self, figures: Sequence[torch.Tensor | float], dtype: str) -> torch.Tensor:
        import torch

        kind = getattr(torch, dtype)
        return torch.stack([torch.as_tensor(figure).detach().to(kind) for figure in figures])


class TorchEngine:
    """The `ArrayLibrary` of torch tensors, through the one-read kernel."""

    def __init__(self) -> None:
        import array_api_compat.torch as torch_namespace

        self.xp: Namespace = torch_namespace

    def scope(self) -> AbstractContextManager[None]:
        return nullcontext()

    def norms(
        self, leaves: Sequence[torch.Tensor], norm_type: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        norms, _, nonfinite, _ = self.figures(leaves, norm_type)
        return norms, nonfinite

    def figures(
        self, leaves: Sequence[torch.Tensor], norm_type: float
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        import torch

        from steadygrad import kernels

        read = kernels.read(leaves, norm_type)
        norms, max_abs = torch.as_tensor(read.norms), torch.as_tensor(read.max_abs)
        return norms, max_abs, torch.as_tensor(read.nonfinite), torch.as_tensor(read.zeros)

    def widen(self, x: torch.Tensor) -> torch.Tensor:
        import torch

        return torch.as_tensor(x).to(torch.float64)

    def narrow(self, x: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        return x.to(like.dtype)

    def scaled(self, leaves: Sequence[torch.Tensor], coef: torch.Tensor) -> list[torch.Tensor]:
        from steadygrad import kernels

        copies = [leaf.clone() for leaf in leaves]  # Keras' caller may still hold the gradients
        kernels.scale_(copies, coef)
        return copies

    def computed_once(self, x: torch.Tensor) -> torch.Tensor:
        return x

    def cleaned(self, leaf: torch.Tensor) -> torch.Tensor:
        return leaf.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)

    def size(self, leaf: torch.Tensor) -> int:
        return int(leaf.numel())


_BACKENDS: dict[str, type] = {
    "jax": JaxBackend,
    "tensorflow": TensorFlowBackend,
    "torch": TorchBackend,
}


def current() -> Backend:
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
    # each takes its own arrays alone
    return cast("Backend", _BACKENDS[name]())


def to_numpy(variable: keras.Variable) -> NDArray[np.generic]:
    """A Keras variable's value on the host."""
    return np.asarray(keras.ops.convert_to_numpy(variable.value))


def _is_sparse(gradient: object) -> bool:
    return type(gradient).__name__ == "IndexedSlices"
