"""The classes that attached optimizers become.

A subclass made from the optimizer's own class, so that `isinstance`, saving and the
optimizer's own methods stay as they are. Each is registered with Keras under
``steadygrad>Steady...``: a saved model brings its policy and the policy's state back once
`steadygrad.keras` is imported, and Keras raises by that name where it is not.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

import keras

from steadygrad.keras.hook import Hook, name_scope
from steadygrad.policies.choice import resolve

_HOOK = "_steadygrad_hook"


def hook_of(optimizer: Any) -> Hook | None:
    """What an attached optimizer holds; None where it is not attached."""
    found: Hook | None = optimizer.__dict__.get(_HOOK)
    return found


def install(optimizer: Any, hook: Hook, unseen: bool = False) -> None:
    """Make an optimizer an attached one; one that is ``unseen`` is saved as a plain one."""
    optimizer.__dict__[_HOOK] = hook  # past __setattr__, which would track it as a layer
    base: Any = type(optimizer)
    optimizer.__class__ = unseen_class(base) if unseen else steady_class(base)
    if optimizer.built:
        with name_scope(optimizer):
            hook.build(optimizer, optimizer._trainable_variables)


def remove(optimizer: Any) -> None:
    """Make an attached optimizer a plain one again."""
    optimizer.__class__ = type(optimizer).plain
    del optimizer.__dict__[_HOOK]


@functools.cache
def steady_class(base: Any) -> Any:
    """The attached form of an optimizer class, registered with Keras."""
    name = f"Steady{base.__name__}"
    methods = {"plain": base, "__module__": "steadygrad.keras", "__doc__": base.__doc__}
    made = type(name, (_Attached, base), methods)
    keras.saving.register_keras_serializable("steadygrad", name)(made)
    return made


@functools.cache
def unseen_class(base: Any) -> Any:
    """The attached form under the optimizer class's own name."""
    return type(base.__name__, (_Unseen, base), _as_named(base))


def _as_named(base: Any) -> dict[str, Any]:
    return {"plain": base, "__module__": base.__module__, "__qualname__": base.__qualname__}


@functools.cache
def outer_class(base: Any) -> Any:
    """A `LossScaleOptimizer` that tells the attached optimizer inside of what it drops."""
    return type(base.__name__, (_Telling, base), _as_named(base))


class _Attached:
    """What an attached optimizer does in place of its own class."""

    plain: Any
    __dict__: dict[str, Any]

    @property
    def variables(self) -> list[Any]:
        hook = self.__dict__[_HOOK]
        return [*super().variables, *([] if hook.hiding else hook.variables)]  # type: ignore[misc]

    def build(self, variables: Any) -> None:
        super().build(variables)  # type: ignore[misc]
        hook = self.__dict__[_HOOK]
        if not hook.variables:
            hook.build(self, list(variables))

    def apply(self, grads: Any, trainable_variables: Any = None) -> None:
        me: Any = self
        if trainable_variables is None:
            trainable_variables = me._trainable_variables
        trainable_variables = list(trainable_variables)
        if not me.built and trainable_variables:
            with name_scope(me):
                me.build(trainable_variables)
        grads = list(grads)
        plain = super().apply  # type: ignore[misc]
        if len(grads) != len(trainable_variables):
            plain(grads)  # raises, saying what is wrong
        self.__dict__[_HOOK].apply(me, plain, grads, trainable_variables)

    def _clip_gradients(self, grads: Any) -> Any:
        me: Any = self
        hook = self.__dict__[_HOOK]
        accumulates = me.gradient_accumulation_steps and not hook.only_observes
        return hook.average if accumulates else grads

    def _all_reduce_sum_gradients(self, grads_and_vars: Any) -> Any:
        if self.__dict__[_HOOK].reduced:
            return grads_and_vars
        return super()._all_reduce_sum_gradients(grads_and_vars)  # type: ignore[misc]

    def load_own_variables(self, store: Any) -> None:
        super().load_own_variables(store)  # type: ignore[misc]
        self.__dict__[_HOOK].reloaded()

    def get_config(self) -> dict[str, Any]:
        hook = self.__dict__[_HOOK]
        config: dict[str, Any] = super().get_config()  # type: ignore[misc]
        return {
            **config,
            "steadygrad": {
                "clip": hook.policy.spec(),
                "on_nonfinite": "raise" if hook.raises else hook.on_nonfinite,
                "to_load": "import steadygrad.keras first",
            },
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> Any:
        config = dict(config)
        ours = config.pop("steadygrad")
        extra = {} if custom_objects is None else {"custom_objects": custom_objects}
        optimizer = _public(cls.plain).from_config(config, **extra)
        choice = resolve(ours["clip"], ours["on_nonfinite"], type(optimizer).__name__)
        install(optimizer, Hook(choice.policy, choice.on_nonfinite))
        return optimizer


class _Unseen(_Attached):
    """An attached optimizer whose script knows nothing of it: `steadygrad run --clip`."""

    def get_config(self) -> dict[str, Any]:
        config: dict[str, Any] = super(_Attached, self).get_config()  # type: ignore[misc]
        return config

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> Any:
        extra = {} if custom_objects is None else {"custom_objects": custom_objects}
        return _public(cls.plain).from_config(config, **extra)

    def save_own_variables(self, store: Any) -> None:
        with self._plain_variables():
            super().save_own_variables(store)  # type: ignore[misc]

    def load_own_variables(self, store: Any) -> None:
        with self._plain_variables():
            super().load_own_variables(store)

    @contextlib.contextmanager
    def _plain_variables(self) -> Iterator[None]:
        hook = self.__dict__[_HOOK]
        hook.hiding = True
        try:
            yield
        finally:
            hook.hiding = False


def _public(base: Any) -> Any:
    """Keras' own class of a backend's form of it: only that one can be constructed."""
    found = getattr(keras.optimizers, base.__name__, base)
    return found if issubclass(base, found) else base


class _Telling:
    """A `LossScaleOptimizer` around an attached optimizer."""

    plain: Any
    __dict__: dict[str, Any]

    def apply(self, grads: Any, trainable_variables: Any = None) -> None:
        self.__dict__["_steadygrad_seen"] = list(grads)
        super().apply(grads, trainable_variables)  # type: ignore[misc]

    def stateless_apply(
        self, optimizer_variables: Any, grads: Any, trainable_variables: Any
    ) -> Any:
        self.__dict__["_steadygrad_seen"] = list(grads)
        return super().stateless_apply(optimizer_variables, grads, trainable_variables)  # type: ignore[misc]

    def _stateful_handle_non_finite_grads(self) -> None:
        super()._stateful_handle_non_finite_grads()  # type: ignore[misc]
        self._tell()

    def _stateless_handle_non_finite_grads(
        self, optimizer_variables: Any, trainable_variables: Any
    ) -> Any:
        me: Any = self
        trainable, after = super()._stateless_handle_non_finite_grads(  # type: ignore[misc]
            optimizer_variables, trainable_variables
        )
        mapping = list(zip(me.variables, after, strict=True))
        with keras.StatelessScope(state_mapping=mapping) as scope:
            self._tell()
        return trainable, [scope.get_current_value(v) for v in me.variables]

    def _tell(self) -> None:
        me: Any = self
        hook = hook_of(me.inner_optimizer)
        if hook is not None:
            hook.note_unseen(me.inner_optimizer, self.__dict__["_steadygrad_seen"], None)


def tell(outer: Any) -> None:
    """Make a `LossScaleOptimizer` tell of the steps it drops."""
    if not isinstance(outer, _Telling):
        base: Any = type(outer)
        outer.__class__ = outer_class(base)


def stop_telling(outer: Any) -> None:
    """Undo `tell`."""
    if isinstance(outer, _Telling):
        plain: Any = type(outer).plain
        outer.__class__ = plain


def register_all() -> None:
    """Make the attached forms of Keras' own optimizers known to its loader."""
    for name in dir(keras.optimizers):
        found = getattr(keras.optimizers, name)
        usable = isinstance(found, type) and issubclass(found, keras.optimizers.Optimizer)
        if usable and found not in (
            keras.optimizers.Optimizer,
            keras.optimizers.LossScaleOptimizer,
        ):
            steady_class(found)
