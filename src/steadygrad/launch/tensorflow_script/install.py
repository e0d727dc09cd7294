"""Patch TensorFlow, once the script has imported it, so that its training is seen.

The clip functions stand under several names (`tf`, `tf.compat.v1`, the modules behind them):
each is replaced wherever it stands. What they return is returned as it is.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Any, Protocol, cast

from steadygrad.invisible import invisible
from steadygrad.launch.blame import aside
from steadygrad.launch.tensorflow_script.apply_call import ApplyCall, Pair, inner_of
from steadygrad.launch.undoing import replace

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    import tensorflow as tf

    from steadygrad.launch.contracts import RunContext
    from steadygrad.launch.tensorflow_script.clips import TensorFlowClipCall
    from steadygrad.launch.tensorflow_script.observer import TensorFlowObserver
    from steadygrad.launch.tensorflow_script.takeover import ReplacedCall
    from steadygrad.tensorflow.engine import Gradient

CLIPS = ("clip_by_global_norm", "clip_by_norm", "clip_by_value")
MOVES = ("assign", "assign_add", "assign_sub", "scatter_sub")
"""Methods by which a loop without an optimizer moves its variables."""
VARIABLES = ("BaseResourceVariable", "ResourceVariable")
"""Both have some of them: TensorFlow puts its own around those of the second."""

UNSUMMED = {"experimental_aggregate_gradients": False}
"""Has an optimizer of tf_keras take gradients that are summed over replicas already."""

Function = Callable[..., object]


class TensorFlowPatches:
    """The patches of one process; makes the observer at their first use.

    Args:
        session: the run.
    """

    def __init__(self, session: RunContext) -> None:
        self._session = session
        self._observer: TensorFlowObserver | None = None
        self._local = threading.local()
        self._scaled: dict[int, _InsideScaler] = {}

    def observer(self) -> TensorFlowObserver:
        """The observer; nothing of ours that needs TensorFlow is loaded before."""
        if self._observer is None:
            from steadygrad.launch.tensorflow_script.observer import TensorFlowObserver

            self._observer = TensorFlowObserver(self._session)
        return self._observer

    @property
    def steps(self) -> int:
        """Steps seen so far."""
        return 0 if self._observer is None else self._observer.steps

    @property
    def backwards(self) -> int:
        """Backward passes seen so far."""
        return 0 if self._observer is None else self._observer.backwards

    def finish(self) -> None:
        """The script is over."""
        if self._observer is not None:
            self._observer.finish()

    def heard(self, loss: object) -> None:
        """Gradients of this are asked for."""
        self._session.guarded("a loss is not seen", lambda: self.observer().heard(loss))

    def scaled(self, scaled: object, loss: object) -> None:
        """A loss was multiplied by a loss scale; where it is a function, nothing is there yet."""
        if not callable(loss):
            self._session.guarded(
                "a loss is not seen", lambda: self.observer().losses.scaled(scaled, loss)
            )

    def unscaled(
        self, scaled: Sequence[object], unscaled: Sequence[object], scaler: _Scaler
    ) -> None:
        """Gradients were divided by a loss scale."""
        self._session.guarded(
            "a clip of scaled gradients is not seen",
            lambda: self.observer().unscaled(scaled, unscaled, scaler.loss_scale),
        )

    def differentiated(
        self, args: Sequence[object], kwargs: Mapping[str, object], gradients: object
    ) -> None:
        """A tape that was called with these arguments has returned these gradients."""
        sources = args[1] if len(args) > 1 else kwargs["sources"]
        self._session.guarded(
            "a loop's gradients are not seen",
            lambda: self.observer().differentiated(sources, gradients),
        )

    def computed(self, args: object, kwargs: object, result: object) -> None:
        """An optimizer has returned gradients and their variables."""
        pairs = cast("Sequence[Pair]", result)
        gradients, variables = [g for g, _ in pairs], [v for _, v in pairs]
        self._session.guarded(
            "a clip by arithmetic is not seen",
            lambda: self.observer().returned(variables, gradients),
        )

    @property
    def waits(self) -> bool:
        """Whether gradients were asked for that nothing was moved by yet."""
        return self._observer is not None and self._observer.by_hand.waits

    def moving(self, variable: object, change: object) -> AbstractContextManager[object]:
        """A variable is about to be moved; a context to do it in, as `stepping`."""
        try:
            if not self._around:
                return self.observer().moved_by_hand(variable, change)
        except Exception as error:
            self._session.trouble("a TensorFlow step by hand is not observed", error)
        return nullcontext()

    def muted(self) -> AbstractContextManager[object]:
        """A context in which clip calls are parts of another."""
        return nullcontext() if self._observer is None else self._observer.log.muted()

    def clip_call(
        self, name: str, args: Sequence[object], kwargs: Mapping[str, object], result: object
    ) -> None:
        """The script has called a clip function."""

        def note() -> None:
            call, returned = _call_of(name, args, kwargs, result)
            self.observer().clip_call(call, returned)

        self._session.guarded("a clip call is not seen", note)

    def take(self, call: ApplyCall, go: Callable[[list[Pair], bool], object]) -> object:
        """An optimizer is given gradients; one inside of another belongs to it.

        Args:
            call: what brings the step.
            go: takes it, with these gradients, which are summed over replicas or not.

        Returns:
            What ``apply_gradients`` returns.
        """
        optimizer, inner = call.optimizer, inner_of(call.optimizer)
        around, of_scaler = self._around, self._scaled.get(id(optimizer))
        if any(one is optimizer for one in around):
            return go(call.pairs, False)  # its base class
        act = functools.partial(go, call.pairs, False)
        clipped: ReplacedCall | None = None
        with contextlib.ExitStack() as stack:
            if not around and of_scaler is None:
                clipped = self._clipped_step(call)
                if clipped is None:
                    stack.enter_context(self._observed_step(call))
                else:
                    stack.enter_context(clipped.set_aside())
                    act = functools.partial(go, clipped.pairs, clipped.is_summed)
            if inner is not optimizer:
                self._scaled[id(inner)] = _InsideScaler(clipped)
                stack.callback(self._scaled.pop, id(inner), None)
            stack.enter_context(self._at_work(optimizer))
            if self._observer is not None:
                pairs = call.pairs if clipped is None else clipped.pairs
                stack.enter_context(self._observer.at_work(optimizer, [g for g, _ in pairs]))
            decided = clipped if of_scaler is None else of_scaler.clipped
            if decided is not None and decided.guards(optimizer):
                return decided.unless_skipped(functools.partial(self._elsewhere, optimizer, act))
            return act()

    @contextlib.contextmanager
    def _at_work(self, optimizer: object) -> Iterator[None]:
        """While an optimizer steps in this thread."""
        self._around.append(optimizer)
        try:
            yield
        finally:
            self._around.pop()

    def _elsewhere(self, optimizer: object, act: Callable[[], object]) -> object:
        """Take a step in a thread of a replica, in which it has not begun."""
        with self._at_work(optimizer):
            return act()

    @property
    def _around(self) -> list[object]:
        """The optimizers at work in this thread: replicas have one each."""
        around: list[object] = self._local.__dict__.setdefault("around", [])
        return around

    def _clipped_step(self, call: ApplyCall) -> ReplacedCall | None:
        """What an optimizer is to be handed; None where it keeps what it has."""
        if self._session.plan.clip is None:
            return None
        try:
            return self.observer().clipped_step(call)
        except Exception as error:
            if type(error).__name__ == "_RequestedStop":
                raise  # so tf.distribute ends the threads of replicas
            self._session.trouble("a TensorFlow step is not clipped", error)
            return None

    def _observed_step(self, call: ApplyCall) -> AbstractContextManager[object]:
        """A context in which the step waits for its figures, where nothing else runs them."""
        try:
            return self.observer().step(call)
        except Exception as error:
            if type(error).__name__ == "_RequestedStop":
                raise  # so tf.distribute ends the threads of replicas
            self._session.trouble("a TensorFlow step is not observed", error)
        return nullcontext()


@dataclass
class _InsideScaler:
    """What a `LossScaleOptimizer` hands to the one inside of it, in whichever thread."""

    clipped: ReplacedCall | None


class _Optimizer(Protocol):
    apply_gradients: Function


def install(patches: TensorFlowPatches, tensorflow: ModuleType) -> None:
    """Patch TensorFlow for this process.

    Args:
        patches: what is told.
        tensorflow: the imported module.
    """
    for name in CLIPS:
        original = getattr(tensorflow, name)
        _replace_everywhere(name, original, _watch_clip(name, original, patches))
    tape = tensorflow.GradientTape
    replace(tape, "gradient", _watch_result(tape.gradient, patches, patches.differentiated))
    first = tensorflow.compat.v1.train.Optimizer
    computes = _watch_result(first.compute_gradients, patches, patches.computed)
    replace(first, "compute_gradients", computes)
    patch_apply_gradients(first, patches)
    _patch_variables(patches)


def install_dropins(patches: TensorFlowPatches, module: ModuleType) -> None:
    """Patch the clip functions of `steadygrad.tensorflow`, which a script may call as TensorFlow's.

    Args:
        patches: TensorFlow's.
        module: the imported package.
    """
    for name in CLIPS:
        original = getattr(module, name)
        wrapped = _watch_clip(name, original, patches)
        for place in (module, sys.modules[original.__module__]):
            replace(place, name, wrapped)


def _patch_variables(patches: TensorFlowPatches) -> None:
    """Have variables tell where a script moves them itself."""
    module = sys.modules.get("tensorflow.python.ops.resource_variable_ops")
    for kind in (getattr(module, name, None) for name in VARIABLES):
        for name in MOVES:
            if name in getattr(kind, "__dict__", ()):
                replace(kind, name, _watch_move(getattr(kind, name), patches))


def install_tf_keras(patches: TensorFlowPatches, tf_keras: ModuleType) -> None:
    """Patch tf_keras, whose optimizers are Keras 2's.

    Args:
        patches: TensorFlow's.
        tf_keras: the imported module.
    """
    for kind in (tf_keras.optimizers.Optimizer, tf_keras.optimizers.legacy.Optimizer):
        for base in reversed(kind.__mro__):
            if "apply_gradients" in vars(base):
                patch_apply_gradients(base, patches)
    for kind in tf_keras.mixed_precision.LossScaleOptimizer.__subclasses__():
        patch_apply_gradients(kind, patches)
        replace(kind, "get_scaled_loss", _watch_scaling(kind.get_scaled_loss, patches))
        divide = kind.get_unscaled_gradients
        replace(kind, "get_unscaled_gradients", _watch_unscaling(divide, patches))


def patch_apply_gradients(kind: type[_Optimizer], patches: TensorFlowPatches) -> None:
    """Have an optimizer class tell of every step."""
    original = kind.apply_gradients

    @functools.wraps(original)
    @invisible
    def apply_gradients(
        self: object,
        grads_and_vars: Iterable[tuple[Gradient | None, tf.Variable]],
        *args: object,
        **kwargs: object,
    ) -> object:
        def go(pairs: list[Pair], summed: bool) -> object:
            if summed:
                return original(self, pairs, *args[:1], **{**kwargs, **UNSUMMED})
            return original(self, pairs, *args, **kwargs)

        pairs = list(grads_and_vars)
        with aside:
            return patches.take(ApplyCall(self, pairs, _sums(original, args, kwargs)), go)

    replace(kind, "apply_gradients", apply_gradients)


def _sums(original: Function, args: Sequence[object], kwargs: Mapping[str, object]) -> bool:
    """Whether a call of ``apply_gradients`` adds up the gradients of replicas."""
    names = list(inspect.signature(original).parameters)[2:]
    every = {**dict(zip(names, args, strict=False)), **kwargs}
    summed = every.get("experimental_aggregate_gradients", True)
    return bool(summed) and not every.get("skip_gradients_aggregation", False)


def _watch_scaling(original: Function, patches: TensorFlowPatches) -> Function:
    @functools.wraps(original)
    def get_scaled_loss(self: object, loss: object) -> object:
        with aside:
            scaled = original(self, loss)
        patches.scaled(scaled, loss)
        return scaled

    return get_scaled_loss


class _Scaler(Protocol):
    loss_scale: tf.Tensor


def _watch_unscaling(original: Function, patches: TensorFlowPatches) -> Function:
    @functools.wraps(original)
    def get_unscaled_gradients(self: _Scaler, grads: Iterable[Gradient | None]) -> object:
        scaled = list(grads)
        with aside:
            unscaled = cast("Sequence[object]", original(self, scaled))
        patches.unscaled(scaled, unscaled, self)
        return unscaled

    return get_unscaled_gradients


def _watch_result(
    original: Function,
    patches: TensorFlowPatches,
    tell: Callable[[Sequence[object], Mapping[str, object], object], None],
) -> Function:
    """A method that differentiates, whose arguments and result are told."""
    heard = _watch_gradient(original, patches)

    @functools.wraps(original)
    @invisible
    def watched(self: object, *args: object, **kwargs: object) -> object:
        with aside:
            result = heard(self, *args, **kwargs)
        tell(args, kwargs, result)
        return result

    return watched


def _watch_move(original: Function, patches: TensorFlowPatches) -> Function:
    @functools.wraps(original)
    @invisible
    def move(self: object, *args: object, **kwargs: object) -> object:
        if not patches.waits:
            with aside:
                return original(self, *args, **kwargs)
        change = args[0] if args else next(iter(kwargs.values()), None)
        with aside, patches.moving(self, change):
            return original(self, *args, **kwargs)

    return move


def _watch_gradient(original: Function, patches: TensorFlowPatches) -> Function:
    @functools.wraps(original)
    @invisible
    def gradient(self: object, *args: object, **kwargs: object) -> object:
        patches.heard(args[0] if args else kwargs.get("target", kwargs.get("loss")))
        with aside:
            return original(self, *args, **kwargs)

    return gradient


def _watch_clip(name: str, original: Function, patches: TensorFlowPatches) -> Function:
    @functools.wraps(original)
    @invisible
    def clip(*args: object, **kwargs: object) -> object:
        if args and hasattr(args[0], "__next__"):
            args = (list(cast("Iterator[object]", args[0])), *args[1:])
        with aside, patches.muted():
            result = original(*args, **kwargs)
        patches.clip_call(name, args, kwargs, result)
        return result

    return clip


def _replace_everywhere(name: str, original: Function, wrapped: Function) -> None:
    for where, module in list(sys.modules.items()):
        if where.split(".")[0] == "tensorflow" and vars(module).get(name) is original:
            replace(module, name, wrapped)


def _call_of(
    name: str, args: Sequence[object], kwargs: Mapping[str, object], result: Any
) -> tuple[TensorFlowClipCall, list[Gradient]]:
    from steadygrad.launch.tensorflow_script.clips import TensorFlowClipCall

    def argument(place: int, keyword: str) -> Any:
        return args[place] if len(args) > place else kwargs.get(keyword)

    if name == "clip_by_global_norm":
        tensors, limit = list(argument(0, "t_list")), argument(1, "clip_norm")
        return TensorFlowClipCall(name, limit, tensors, argument(2, "use_norm")), list(result[0])
    if name == "clip_by_norm":
        limit, axes = argument(1, "clip_norm"), argument(2, "axes")
        return TensorFlowClipCall(name, limit, [argument(0, "t")], axes=axes), [result]
    low, high = argument(1, "clip_value_min"), argument(2, "clip_value_max")
    limit = _wider(low, high)
    return TensorFlowClipCall(name, limit, [argument(0, "t")], bounds=(low, high)), [result]


def _wider(low: float | tf.Tensor, high: float | tf.Tensor) -> float | tf.Tensor:
    """The bound that is farther from 0, where both are known."""
    both = all(isinstance(bound, int | float) for bound in (low, high))
    return max(abs(low), abs(high)) if both else high
