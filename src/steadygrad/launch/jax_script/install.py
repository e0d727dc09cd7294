"""Patching jax and optax for one process: what a script makes afterwards is observed."""

from __future__ import annotations

import functools
from types import ModuleType
from typing import TYPE_CHECKING

from steadygrad.launch.blame import aside
from steadygrad.launch.undoing import replace

if TYPE_CHECKING:
    from collections.abc import Callable

    import optax

    from steadygrad.launch.contracts import RunContext
    from steadygrad.launch.jax_script.flight import Update
    from steadygrad.launch.jax_script.losses import Losses
    from steadygrad.launch.jax_script.observer import JaxObserver
    from steadygrad.typing import PyTree


class JaxScript:
    """The two moments at which a JAX script can be reached: jax is imported, optax is.

    Args:
        session: the run.
    """

    def __init__(self, session: RunContext) -> None:
        self._session = session
        self._losses: Losses | None = None

    def jax_imported(self, jax: ModuleType) -> None:
        """Hear the losses; a script may take these functions by name before it loads optax."""
        from steadygrad.launch.jax_script.losses import Losses

        self._losses = Losses()
        hearing = self._losses.watch(jax.value_and_grad)
        replace(jax, "grad", self._losses.watch_grad(jax.grad, hearing))
        replace(jax, "value_and_grad", hearing)

    def scale_imported(self, module: ModuleType) -> None:
        """Hear losses without the loss scale of Flax' `DynamicScale`."""
        assert self._losses is not None
        kind = module.DynamicScale
        replace(kind, "value_and_grad", self._losses.watch_scaled(kind.value_and_grad))

    def optax_imported(self, optax: ModuleType) -> None:
        """Observe every transformation that is made from now on."""
        try:
            self._observe(optax)
        except Exception as error:
            self._session.trouble("optax is not observed", error)

    def _observe(self, optax: ModuleType) -> None:
        assert self._losses is not None
        from steadygrad.launch.jax_script.observer import JaxObserver

        observer = JaxObserver(self._session, self._losses)
        self._session.observe(observer)
        self._losses.wanted = True
        _patch_new(optax, observer)
        _patch_multi_steps(optax.MultiSteps, observer)


def _patch_new(module: ModuleType, observer: JaxObserver) -> None:
    from steadygrad.launch.jax_script.internals import made_by
    from steadygrad.launch.jax_script.observer import Owner

    base: type[optax.GradientTransformation] = module.GradientTransformation
    original: Callable[..., optax.GradientTransformation] = base.__new__

    @functools.wraps(original)
    def new(
        cls: type[optax.GradientTransformation], init: Callable[..., PyTree], update: Update
    ) -> optax.GradientTransformation:
        if isinstance(getattr(update, "__self__", None), module.MultiSteps):
            return original(cls, init, update)  # its own calls of the inner one are the steps
        owner = Owner(made_by(update))

        @functools.wraps(init)
        def starting(*args: PyTree, **kwargs: object) -> PyTree:
            with aside:
                return observer.initialising(owner, init, args, kwargs)

        @functools.wraps(update)
        def observed(*args: PyTree, **kwargs: object) -> tuple[PyTree, PyTree]:
            with aside:
                return observer.update(owner, update, args, kwargs)

        return original(cls, starting, observed)

    replace(base, "__new__", new)


def _patch_multi_steps(kind: type[optax.MultiSteps], observer: JaxObserver) -> None:
    """Let the inner optimizer know which of its calls is a step, and which a micro-batch."""
    original = kind.update

    @functools.wraps(original)
    def update(
        self: optax.MultiSteps,
        updates: PyTree,
        state: optax.MultiStepsState,
        *args: PyTree,
        **kwargs: object,
    ) -> tuple[PyTree, PyTree]:
        every = self._every_k_schedule(state.gradient_step)
        with observer.window(state.mini_step == every - 1), aside:
            made: tuple[PyTree, PyTree] = original(self, updates, state, *args, **kwargs)
        return made

    replace(kind, "update", update)
