"""Patch Keras, once the script has imported it, so that its training is seen."""

from __future__ import annotations

import functools
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

from steadygrad.keras.hook import Gradients, Hook
from steadygrad.keras.internals import (
    DROPS_OF_SCALERS,
    base_optimizer,
    jax_trainer,
    name_scope,
    renew_shardings,
)
from steadygrad.launch.blame import aside
from steadygrad.launch.keras_script.observer import KerasObserver
from steadygrad.launch.keras_script.rows import ScaledStep
from steadygrad.launch.keras_script.takeover import Takeover
from steadygrad.launch.undoing import note, replace

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from types import ModuleType

    import keras

    from steadygrad.launch.contracts import RunContext
    from steadygrad.launch.tensorflow_script.install import TensorFlowPatches
    from steadygrad.typing import Array, PyTree


def install(
    session: RunContext, keras: ModuleType, tensorflow: TensorFlowPatches
) -> KerasObserver | None:
    """Patch Keras for this process.

    Args:
        session: the run.
        keras: the imported module.
        tensorflow: TensorFlow's patches; it may not be imported to the end yet, or not at all.

    Returns:
        The observer; None where Keras runs on a backend that cannot train.
    """
    backend = keras.backend.backend()
    if backend not in ("tensorflow", "jax", "torch"):
        return None
    observer = KerasObserver(
        session, keras, tensorflow.observer if backend == "tensorflow" else None
    )
    note(observer.release)
    base = base_optimizer()
    takeover = None
    if session.plan.clip is not None:
        takeover = Takeover(session, observer, session.plan.clip)
        observer.clips = takeover.clips
        note(takeover.leave)
    _patch_hook(observer)
    _patch_apply(base, observer, takeover)
    _patch_scaler(keras, observer, takeover)
    if backend != "jax":  # there it is a tracer of another trace
        for kind in (base, keras.optimizers.LossScaleOptimizer):
            _patch_scale_loss(kind, observer)
    _patch_make_train_function(keras.Model, observer, takeover)
    many = getattr(keras.optimizers, "MultiOptimizer", None)
    if many is not None:
        _patch_apply_of_many(many, observer)
    if takeover is not None:
        for kind in filter(None, (base, many)):
            _patch_build(kind, takeover)
    if backend == "jax":
        _patch_value_and_grad(sys.modules["jax"], observer)
    return observer


def _patch_apply(
    base: type[keras.Optimizer], observer: KerasObserver, takeover: Takeover | None
) -> None:
    original = base.apply

    @functools.wraps(original)
    def apply(
        self: keras.Optimizer,
        grads: Iterable[Array | None],
        trainable_variables: Iterable[keras.Variable] | None = None,
    ) -> object:
        if takeover is not None and takeover.clip(self):
            return self.apply(grads, trainable_variables)
        grads = list(grads)
        if trainable_variables is not None:  # a generator, as Keras takes it, is read once
            trainable_variables = list(trainable_variables)
        observer.before_apply(self, grads, trainable_variables)
        with aside, observer.at_work(self, grads):
            return original(self, grads, trainable_variables)

    replace(base, "apply", apply)


def _patch_hook(observer: KerasObserver) -> None:
    """Have optimizers that the script attaches tell of their steps from the first one on."""
    original = Hook.apply

    @functools.wraps(original)
    def apply(
        self: Hook,
        optimizer: keras.Optimizer,
        go: Callable[[Gradients, list[keras.Variable]], None],
        gradients: Gradients,
        trainable: list[keras.Variable],
    ) -> None:
        observer.hear(optimizer, self)
        with aside:
            original(self, optimizer, go, gradients, trainable)

    replace(Hook, "apply", apply)


def _patch_scaler(library: ModuleType, observer: KerasObserver, takeover: Takeover | None) -> None:
    """Have a `LossScaleOptimizer` tell what it was given: inside, all is divided or dropped."""
    kind = library.optimizers.LossScaleOptimizer
    original, stateless = kind.apply, kind.stateless_apply
    drop, drop_stateless = (getattr(kind, name) for name in DROPS_OF_SCALERS)

    @functools.wraps(original)
    def apply(
        self: keras.Optimizer,
        grads: Iterable[Array | None],
        trainable_variables: Iterable[keras.Variable] | None = None,
    ) -> object:
        before, grads = type(self), list(grads)
        if trainable_variables is not None:
            trainable_variables = list(trainable_variables)
            if takeover is not None and not self.built:  # which changes its class, to clip
                with name_scope(self):
                    self.build(trainable_variables)
        if type(self) is not before:
            return self.apply(grads, trainable_variables)
        if takeover is not None:
            grads = takeover.unclipped(self, grads)
        with aside, observer.rows.scaling(ScaledStep(self, grads, trainable_variables)):
            return original(self, grads, trainable_variables)

    @functools.wraps(stateless)
    def stateless_apply(
        self: keras.Optimizer,
        optimizer_variables: Sequence[Array],
        grads: Sequence[Array | None],
        trainable_variables: Sequence[Array],
    ) -> object:
        # its scale is one of these arrays: the variable itself is another trace's
        scale = next(
            (x for v, x in zip(self.variables, optimizer_variables, strict=True)
             if v is self.dynamic_scale), None)  # fmt: skip
        with aside, observer.rows.scaling(ScaledStep(self, list(grads), None, scale)):
            return stateless(self, optimizer_variables, grads, trainable_variables)

    @functools.wraps(drop)
    def dropped(self: keras.Optimizer) -> object:
        observer.dropped()
        with aside:
            return drop(self)

    @functools.wraps(drop_stateless)
    def dropped_stateless(
        self: keras.Optimizer,
        optimizer_variables: Sequence[Array],
        trainable_variables: Sequence[Array],
    ) -> object:
        with library.StatelessScope(list(zip(self.variables, optimizer_variables, strict=True))):
            observer.dropped()
        with aside:
            return drop_stateless(self, optimizer_variables, trainable_variables)

    replace(kind, "apply", apply)
    replace(kind, "stateless_apply", stateless_apply)
    for name, wrapped in zip(DROPS_OF_SCALERS, (dropped, dropped_stateless), strict=True):
        replace(kind, name, wrapped)


def _patch_apply_of_many(kind: type[keras.Optimizer], observer: KerasObserver) -> None:
    """Have a `MultiOptimizer` built, and its class changed to clip, before its `apply` begins."""
    original = kind.apply

    @functools.wraps(original)
    def apply(
        self: keras.Optimizer,
        grads: Iterable[Array | None],
        trainable_variables: Iterable[keras.Variable] | None = None,
    ) -> object:
        before = type(self)
        if not self.built and trainable_variables is not None:
            trainable_variables = list(trainable_variables)
            self.build(trainable_variables)
        if type(self) is not before:
            return self.apply(grads, trainable_variables)
        with aside, observer.losses.sharing():
            return original(self, grads, trainable_variables)

    replace(kind, "apply", apply)


def _patch_make_train_function(
    kind: Any, observer: KerasObserver, takeover: Takeover | None
) -> None:
    original = kind.make_train_function

    @functools.wraps(original)
    def make_train_function(self: Any, force: bool = False) -> Any:
        afresh = observer.is_compiled_without_us(self)
        if afresh and takeover is not None and self.optimizer is not None:
            takeover.clip(self.optimizer)  # one that is built already, before anything is traced
            renew_shardings(self)
        with aside:
            made = original(self, force or afresh)
        observer.guarded("weights are not sampled", observer.watch_weights, self)
        return made

    replace(kind, "make_train_function", make_train_function)


def _patch_scale_loss(kind: type[keras.Optimizer], observer: KerasObserver) -> None:
    original = kind.scale_loss

    @functools.wraps(original)
    def scale_loss(self: keras.Optimizer, loss: Array) -> Array:
        with aside:
            scaled: Array = original(self, loss)
        observer.losses.scaled(scaled, loss)
        return scaled

    replace(kind, "scale_loss", scale_loss)


def _patch_build(kind: type[keras.Optimizer], takeover: Takeover) -> None:
    original = kind.build

    @functools.wraps(original)
    def build(self: keras.Optimizer, variables: Iterable[keras.Variable]) -> object:
        with aside, takeover.building(self):
            return original(self, variables)

    replace(kind, "build", build)


def _patch_value_and_grad(jax: ModuleType, observer: KerasObserver) -> None:
    original = jax.value_and_grad
    trainer = jax_trainer()

    @functools.wraps(original)
    def value_and_grad(
        fun: Callable[..., object], *args: object, **kwargs: object
    ) -> Callable[..., tuple[PyTree, PyTree]]:
        with aside:
            function = original(fun, *args, **kwargs)
        scales = getattr(fun, "__func__", None) is trainer.compute_loss_and_updates
        has_aux = kwargs.get("has_aux", args[1] if len(args) > 1 else False)

        @functools.wraps(function)
        def noting(*inputs: object, **more: object) -> tuple[PyTree, PyTree]:
            with aside:
                result, grads = function(*inputs, **more)
            value = result[0] if has_aux else result
            # what Keras' own function returns may be scaled, and the loss itself stands aside
            observer.losses.loss = result[1][0] if scales else value
            return result, grads

        return noting

    replace(jax, "value_and_grad", value_and_grad)
