"""`steadygrad run --clip` on Keras: optimizers are attached as they are built.

They take a form that is saved as a plain one, and their figures leave the step as those of an
observed one do. What the script clips by itself is replaced only there, where a policy acts.
"""

from __future__ import annotations

import contextlib
import functools
import math
import weakref
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from steadygrad.keras import classes
from steadygrad.keras.attaching import unwrap
from steadygrad.keras.hook import Hook
from steadygrad.keras.internals import members
from steadygrad.launch.keras_script.own_clip import SPECS
from steadygrad.policies.choice import resolve
from steadygrad.policies.stepping import Stepped

if TYPE_CHECKING:
    import keras

    from steadygrad.launch.contracts import RunContext
    from steadygrad.launch.keras_script.observer import KerasObserver
    from steadygrad.typing import Array


class Takeover:
    """Puts the policy of ``--clip`` into every Keras optimizer.

    Args:
        session: the run.
        observer: is told of the steps.
        clip: the policy's spec.
    """

    def __init__(self, session: RunContext, observer: KerasObserver, clip: str) -> None:
        self._session, self._observer, self._clip = session, observer, clip
        self._done: weakref.WeakSet[Any] = weakref.WeakSet()
        self._taken: weakref.WeakSet[Any] = weakref.WeakSet()
        self._wrappers: weakref.WeakSet[Any] = weakref.WeakSet()
        self._own: list[tuple[Any, str, float]] = []
        self._inside = 0

    @contextlib.contextmanager
    def building(self, optimizer: keras.Optimizer) -> Iterator[None]:
        """An optimizer is built; one inside of another belongs to it."""
        self._inside += 1
        try:
            yield
        finally:
            self._inside -= 1
        if self._inside == 0:
            self.clip(optimizer)

    def clip(self, optimizer: keras.Optimizer) -> bool:
        """Whether an optimizer's class was changed just now, to clip."""
        if optimizer in self._done:
            return False
        try:
            return self._take_over(optimizer)
        except Exception as error:
            self._session.trouble("a Keras optimizer is not clipped", error)
            inner = getattr(optimizer, "inner_optimizer", optimizer)
            if inner in self._taken and classes.hook_of(inner) is not None:
                classes.remove(inner)  # half of a hook would end the training
            return False

    def clips(self, optimizer: keras.Optimizer) -> bool:
        """Whether a hook of ours tells of this optimizer's steps."""
        if optimizer not in self._done:
            return False
        hook = classes.hook_of(optimizer)
        return hook is None or hook.watcher is not None

    def unclipped(
        self, optimizer: keras.Optimizer, gradients: Sequence[Array | None]
    ) -> list[Array | None]:
        """The gradients as they were before the script's own clip calls, where our policy acts.

        Args:
            optimizer: the one that is given the gradients.
            gradients: they.

        Returns:
            One for each.
        """
        try:
            return self._as_before(optimizer, gradients)
        except Exception as error:
            self._session.trouble("what the script clipped is clipped once more", error)
            return list(gradients)

    def _as_before(
        self, optimizer: keras.Optimizer, gradients: Sequence[Array | None]
    ) -> list[Array | None]:
        tensorflow = self._observer.ground.tensorflow
        inner = getattr(optimizer, "inner_optimizer", optimizer)
        hook = classes.hook_of(inner)
        if hook is None or hook.watcher is None:
            return list(gradients)
        if tensorflow is None:
            is_jax = self._observer.ground.name == "jax"
            return self._before_by_hand(gradients) if is_jax else list(gradients)
        return tensorflow.without_clips(gradients)

    def _before_by_hand(self, gradients: Sequence[Array | None]) -> list[Array | None]:
        """The gradients before the script's own code has clipped them, on JAX."""
        from steadygrad.launch.jax_script.by_hand import clipped_by_hand

        hand = clipped_by_hand([gradient for gradient in gradients if gradient is not None])
        if hand is None:
            return list(gradients)
        if not all(math.isfinite(clip.limit) for clip in hand.clips):
            self._session.mention("the script's own code still clips or scales, before --clip")
            return list(gradients)
        self._session.mention("the script's own clip by hand was replaced by --clip")
        before = iter(hand.before)
        return [None if g is None else next(before).astype(g.dtype) for g in gradients]

    def _take_over(self, optimizer: keras.Optimizer) -> bool:
        outer, inner = unwrap(optimizer)
        family = members(inner)
        self._done.update([optimizer, inner, *family])
        standing = classes.hook_of(inner)
        if standing is not None:
            if standing.watcher is None:
                self._session.mention("an optimizer that the script attaches itself is left to it")
            elif outer is not None:
                classes.tell(outer)
            return False
        mode = self._session.plan.on_nonfinite
        if mode == "raise":
            self._session.mention(
                "--on-nonfinite raise: compiled code cannot raise; steps were skipped"
            )
            mode = "skip"
        choice = resolve(self._clip, mode, type(inner).__name__)
        hook = Hook(choice.policy, choice.on_nonfinite)
        hook.watcher = functools.partial(self._tell, inner)
        hook.incoming = functools.partial(self.unclipped, inner)
        for one in (inner, *family):
            self._replace_own_clipping(one)
        self._taken.add(inner)
        classes.install(inner, hook, unseen=True)
        if outer is not None:
            classes.tell(outer)
            self._wrappers.add(outer)
        return inner is optimizer

    def leave(self) -> None:
        """Make the optimizers plain ones again, which clip by themselves as they did."""
        for optimizer in list(self._taken):
            if classes.hook_of(optimizer) is not None:
                classes.remove(optimizer)
        for outer in list(self._wrappers):
            classes.stop_telling(outer)
        for optimizer, name, value in self._own:
            setattr(optimizer, name, value)

    def _replace_own_clipping(self, optimizer: object) -> None:
        for name in SPECS:
            value = getattr(optimizer, name, None)
            if value:
                setattr(optimizer, name, None)
                self._own.append((optimizer, name, value))
                self._session.mention(
                    f"{type(optimizer).__name__}'s own {name}={value} was replaced by --clip"
                )

    def _tell(
        self,
        optimizer: keras.Optimizer,
        done: Stepped,
        variables: Sequence[keras.Variable],
        kind: Array | None = None,
    ) -> None:
        self._session.guarded(
            "a clipped Keras step is not recorded",
            self._observer.tell,
            optimizer,
            done,
            variables,
            kind,
        )
