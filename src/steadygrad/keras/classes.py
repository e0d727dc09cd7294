"""The classes that attached optimizers become.

A subclass made from the optimizer's own class, so that `isinstance`, saving and the
optimizer's own methods stay as they are. Each is registered with Keras under
``steadygrad>Steady...``: a saved model brings its policy and the policy's state back once
`steadygrad.keras` is imported, and Keras raises by that name where it is not.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, cast

import keras

from steadygrad.keras.hook import Hook
from steadygrad.keras.internals import name_scope
from steadygrad.policies.choice import resolve
from steadygrad.policies.gated import Gated

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from steadygrad.typing import Array

_HOOK = "_steadygrad_hook"
_SEEN = "_steadygrad_seen"

_once: Callable[[Callable[[type], type]], Callable[[type], type]] = functools.cache
"""One subclass a class."""


def hook_of(optimizer: keras.Optimizer) -> Hook | None:
    """What an attached optimizer holds; None where it is not attached."""
    hook: Hook | None = optimizer.__dict__.get(_HOOK)
    return hook


def install(optimizer: keras.Optimizer, hook: Hook, unseen: bool = False) -> None:
    """Make an optimizer an attached one; one that is ``unseen`` is saved as a plain one."""
    optimizer.__dict__[_HOOK] = hook  # past __setattr__, which would track it as a layer
    base: type[keras.Optimizer] = type(optimizer)
    optimizer.__class__ = unseen_class(base) if unseen else steady_class(base)
    if optimizer.built:
        with name_scope(optimizer):
            hook.build(optimizer, optimizer._trainable_variables)


def remove(optimizer: keras.Optimizer) -> None:
    """Make an attached optimizer a plain one again."""
    optimizer.__class__ = type(optimizer).plain
    del optimizer.__dict__[_HOOK]


@_once
def steady_class(base: type[keras.Optimizer]) -> type[keras.Optimizer]:
    """The attached form of an optimizer class, registered with Keras."""
    name = f"Steady{base.__name__}"
    methods = {"plain": base, "__module__": "steadygrad.keras", "__doc__": base.__doc__}
    made = type(name, (_Attached, base), methods)
    keras.saving.register_keras_serializable("steadygrad", name)(made)
    return made


@_once
def unseen_class(base: type[keras.Optimizer]) -> type[keras.Optimizer]:
    """The attached form under the optimizer class's own name."""
    return type(base.__name__, (_Unseen, base), _as_named(base))


def _as_named(base: type[keras.Optimizer]) -> dict[str, object]:
    return {"plain": base, "__module__": base.__module__, "__qualname__": base.__qualname__}


@_once
def outer_class(base: type[keras.Optimizer]) -> type[keras.Optimizer]:
    """A `LossScaleOptimizer` that tells the attached optimizer inside of what it drops."""
    return type(base.__name__, (_Telling, base), _as_named(base))


class _Attached:
    """What an attached optimizer does in place of its own class."""

    plain: type[keras.Optimizer]

    @property
    def variables(self) -> list[keras.Variable]:
        hook = self.__dict__[_HOOK]
        return [*super().variables, *([] if hook.hiding else hook.state.all)]  # type: ignore[misc]

    def build(self, variables: Sequence[keras.Variable]) -> None:
        super().build(variables)  # type: ignore[misc]
        hook = self.__dict__[_HOOK]
        if not hook.state.all:
            hook.build(self, list(variables))

    def apply(
        self,
        grads: Iterable[Array | None],
        trainable_variables: Iterable[keras.Variable] | None = None,
    ) -> None:
        me: keras.Optimizer = self
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

    def _clip_gradients(self, grads: Sequence[Array]) -> Sequence[Array]:
        me: keras.Optimizer = self
        hook = self.__dict__[_HOOK]
        accumulates = me.gradient_accumulation_steps and not hook.only_observes
        return hook.average if accumulates else grads

    def _all_reduce_sum_gradients(
        self, grads_and_vars: list[tuple[Array, keras.Variable]]
    ) -> list[tuple[Array, keras.Variable]]:
        if self.__dict__[_HOOK].reduced:
            return grads_and_vars
        summed: list[tuple[Array, keras.Variable]]
        summed = super()._all_reduce_sum_gradients(grads_and_vars)  # type: ignore[misc]
        return summed

    def load_own_variables(self, store: object) -> None:
        super().load_own_variables(store)  # type: ignore[misc]
        self.__dict__[_HOOK].reloaded()

    def get_config(self) -> dict[str, object]:
        hook = self.__dict__[_HOOK]
        config: dict[str, object] = super().get_config()  # type: ignore[misc]
        return {
            **config,
            "steadygrad": {
                "clip": hook.policy.spec(),
                "on_nonfinite": "raise" if hook.raises else hook.choice.on_nonfinite,
                "to_load": "import steadygrad.keras first",
                **({"gated": True} if hook.gated else {}),
            },
        }

    @classmethod
    def from_config(
        cls, config: dict[str, object], custom_objects: Mapping[str, type] | None = None
    ) -> keras.Optimizer:
        config = dict(config)
        ours = cast("dict[str, str]", config.pop("steadygrad"))
        extra = {} if custom_objects is None else {"custom_objects": custom_objects}
        optimizer = _public(cls.plain).from_config(config, **extra)
        choice = resolve(ours["clip"], ours["on_nonfinite"], type(optimizer).__name__)
        policy = Gated(choice.policy) if ours.get("gated") else choice.policy
        install(optimizer, Hook(policy, choice.on_nonfinite))
        return optimizer


class _Unseen(_Attached):
    """An attached optimizer whose script knows nothing of it: `steadygrad run --clip`."""

    def get_config(self) -> dict[str, object]:
        config: dict[str, object] = super(_Attached, self).get_config()  # type: ignore[misc]
        return config

    @classmethod
    def from_config(
        cls, config: dict[str, object], custom_objects: Mapping[str, type] | None = None
    ) -> keras.Optimizer:
        extra = {} if custom_objects is None else {"custom_objects": custom_objects}
        return _public(cls.plain).from_config(config, **extra)

    def save_own_variables(self, store: object) -> None:
        with self._plain_variables():
            super().save_own_variables(store)  # type: ignore[misc]

    def load_own_variables(self, store: object) -> None:
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


def _public(base: type[keras.Optimizer]) -> type[keras.Optimizer]:
    """Keras' own class of a backend's form of it: only that one can be constructed."""
    public = getattr(keras.optimizers, base.__name__, base)
    return public if issubclass(base, public) else base


class _Telling:
    """A `LossScaleOptimizer` around an attached optimizer."""

    plain: type[keras.Optimizer]

    def apply(
        self,
        grads: Iterable[Array | None],
        trainable_variables: Iterable[keras.Variable] | None = None,
    ) -> None:
        grads, me = list(grads), cast("keras.Optimizer", self)
        # a copy: the variable is changed in place, and then the step is noted
        scale = keras.ops.multiply(me.dynamic_scale, 1.0) if me.built else me.initial_scale
        with self._seeing(grads, scale):
            super().apply(grads, trainable_variables)  # type: ignore[misc]

    def stateless_apply(
        self,
        optimizer_variables: Sequence[Array],
        grads: Iterable[Array | None],
        trainable_variables: Iterable[keras.Variable] | None,
    ) -> tuple[list[Array], list[Array]]:
        grads, me = list(grads), cast("keras.Optimizer", self)
        after: tuple[list[Array], list[Array]]
        # one of these arrays is its scale: the variable itself is another trace's
        there = zip(me.variables, optimizer_variables, strict=True)
        scale = next(value for variable, value in there if variable is me.dynamic_scale)
        with self._seeing(grads, scale):
            after = super().stateless_apply(optimizer_variables, grads, trainable_variables)  # type: ignore[misc]
        return after

    @contextlib.contextmanager
    def _seeing(self, grads: list[Array | None], scale: Array | float) -> Iterator[None]:
        """Gradients that may be dropped, and the scale that they carry; of several replicas, those
        of all are there together."""
        me: keras.Optimizer = self
        seen, hook = self.__dict__.setdefault(_SEEN, {}), hook_of(me.inner_optimizer)
        seen[id(grads)] = grads
        if hook is not None:
            hook.scale = scale
        try:
            yield
        finally:
            seen.pop(id(grads))
            if hook is not None and not seen:
                hook.scale = 1.0

    def _stateful_handle_non_finite_grads(self) -> None:
        super()._stateful_handle_non_finite_grads()  # type: ignore[misc]
        self._tell()

    def _stateless_handle_non_finite_grads(
        self,
        optimizer_variables: Sequence[Array],
        trainable_variables: Iterable[keras.Variable] | None,
    ) -> tuple[Sequence[Array], list[Array]]:
        me: keras.Optimizer = self
        trainable, after = super()._stateless_handle_non_finite_grads(  # type: ignore[misc]
            optimizer_variables, trainable_variables
        )
        mapping = list(zip(me.variables, after, strict=True))
        with keras.StatelessScope(state_mapping=mapping) as scope:
            self._tell()
        return trainable, [scope.get_current_value(v) for v in me.variables]

    def _tell(self) -> None:
        me: keras.Optimizer = self
        hook = hook_of(me.inner_optimizer)
        if hook is not None:
            hook.note_unseen(list(self.__dict__[_SEEN].values()))


def tell(outer: keras.Optimizer) -> None:
    """Make a `LossScaleOptimizer` tell of the steps it drops."""
    if not isinstance(outer, _Telling):
        base: type[keras.Optimizer] = type(outer)
        outer.__class__ = outer_class(base)


def stop_telling(outer: keras.Optimizer) -> None:
    """Undo `tell`."""
    if isinstance(outer, _Telling):
        plain: type[keras.Optimizer] = type(outer).plain
        outer.__class__ = plain


def register_all() -> None:
    """Make the attached forms of Keras' own optimizers known to its loader."""
    for name in dir(keras.optimizers):
        public = getattr(keras.optimizers, name)
        usable = isinstance(public, type) and issubclass(public, keras.optimizers.Optimizer)
        if usable and public not in (
            keras.optimizers.Optimizer,
            keras.optimizers.LossScaleOptimizer,
        ):
            steady_class(public)
