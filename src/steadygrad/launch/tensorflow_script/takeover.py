"""`steadygrad run --clip` on the optimizers of tf_keras and `tf.compat.v1`.

They stay what they are: what they are handed is clipped on its way in, and what they would clip
by themselves is set aside while they take the step.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import numpy as np
import tensorflow as tf

from steadygrad.keras.internals import OfTfKeras, built_moments
from steadygrad.launch.keras_script.own_clip import SPECS
from steadygrad.launch.tensorflow_script.apply_call import ApplyCall, Pair, inner_of
from steadygrad.launch.tensorflow_script.outcome import values
from steadygrad.launch.tensorflow_script.side import in_sessions, made_apart
from steadygrad.policies import Policy
from steadygrad.policies.choice import Choice, resolve, skips_by_itself
from steadygrad.policies.in_numpy import NUMPY
from steadygrad.policies.stepping import StepGradients, Stepped, step
from steadygrad.tensorflow.engine import Gradient, TensorFlowEngine, merged, relike
from steadygrad.tensorflow.replicas import once_for_all, reduced, unless

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from steadygrad.launch.contracts import RunContext
    from steadygrad.policies.base import State


@dataclass(eq=False)
class ReplacedCall:
    """What an optimizer is handed in place of that.

    Attributes:
        pairs: with clipped gradients.
        guarded: the optimizer whose call is left out where ``skip`` holds.
        skip: 0-d bool; None where nothing is left out.
        is_summed: over the replicas.
        clipping: the optimizer that may clip by itself.
    """

    pairs: list[Pair]
    guarded: object
    skip: tf.Tensor | None
    is_summed: bool
    clipping: object

    def guards(self, optimizer: object) -> bool:
        """Whether a call of this optimizer may be left out."""
        return self.skip is not None and self.guarded is optimizer

    def unless_skipped(self, go: Callable[[], object]) -> object:
        """Take the step, unless it is to be left out.

        Args:
            go: takes it.

        Returns:
            What ``apply_gradients`` is to return.
        """
        if self.skip is None:
            return go()
        unless(self.skip, go)
        return getattr(self.guarded, "iterations", None)

    @contextlib.contextmanager
    def set_aside(self) -> Iterator[None]:
        """While the optimizer steps, it does not clip by itself."""
        own = {name: value for name in SPECS if (value := getattr(self.clipping, name, None))}
        try:
            for name in own:
                setattr(self.clipping, name, None)
            yield
        finally:
            for name, value in own.items():
                setattr(self.clipping, name, value)


class PolicyMemory:
    """What a policy remembers of one optimizer, in variables that are not the script's.

    Args:
        policy: it.
        names: of the tensors.
    """

    def __init__(self, policy: Policy, names: tuple[str, ...]) -> None:
        first = policy.init(NUMPY, names, np.float64, np.int64)
        values = {key: np.asarray(first[key]) for key in sorted(first)}
        self._variables = made_apart(lambda: {key: _variable(x) for key, x in values.items()})

    def read(self) -> State:
        """It, as it is now."""
        return {key: tf.convert_to_tensor(variable) for key, variable in self._variables.items()}

    def write(self, state: State) -> None:
        """Put the next in its place."""
        if self._variables:
            once_for_all(self._assign, *(state[key] for key in self._variables))

    def _assign(self, *values: tf.Tensor) -> None:
        for variable, value in zip(self._variables.values(), values, strict=True):
            variable.assign(tf.cast(value, variable.dtype))


class TensorFlowTakeover:
    """Puts the policy of ``--clip`` before every optimizer.

    Args:
        session: the run.
        clip: the policy's spec.
    """

    def __init__(self, session: RunContext, clip: str) -> None:
        self._session, self._clip = session, clip
        self._engine = TensorFlowEngine()
        self._memories: weakref.WeakKeyDictionary[object, dict[tuple[str, ...], PolicyMemory]] = (
            weakref.WeakKeyDictionary()
        )

    @staticmethod
    def hinders(call: ApplyCall) -> str:
        """Why a step cannot be clipped, as a sentence; empty where it can."""
        kind = type(inner_of(call.optimizer)).__name__
        if in_sessions():
            return (
                f"{kind}: graphs that run in sessions, as TensorFlow 1 had them, are recorded "
                "only, and clip as the script has it. Use an optimizer of tf_keras or Keras 3, "
                "in eager code or in a tf.function, to clip here"
            )
        several = tf.distribute.get_strategy().num_replicas_in_sync > 1
        if several and not hasattr(call.optimizer, "iterations"):
            return (
                f"{kind}: optimizers of tf.compat.v1 add up the gradients of replicas by "
                "themselves, and clip as the script has it. Use one of tf_keras or Keras 3"
            )
        return ""

    def take(
        self, call: ApplyCall, gradients: Sequence[Gradient], names: tuple[str, ...]
    ) -> tuple[Stepped, ReplacedCall]:
        """Measure, decide and act on one step.

        Args:
            call: what brings the step.
            gradients: its own without None, before the script's clip calls.
            names: of their variables.

        Returns:
            What came of it, and what the optimizer is to be handed.
        """
        inner = inner_of(call.optimizer)
        choice = self._choice(type(inner).__name__)
        drops = inner is not call.optimizer and bool(getattr(call.optimizer, "dynamic", False))
        if drops and not choice.only_observes:
            choice = Choice(choice.policy, "skip")  # it must see what has overflowed
        summed, is_summed = reduced(gradients) if call.sums else (list(gradients), False)
        variables = [variable for gradient, variable in call.pairs if gradient is not None]
        memory = self._memory(inner, choice.policy, names)
        leaves = [values(merged(gradient)) for gradient in summed]
        beside = self._beside(choice.policy, inner, variables)
        done = step(
            self._engine, choice, memory.read(), StepGradients(leaves, names, beside), full=True
        )
        memory.write(done.state)
        for name in SPECS:
            value = getattr(inner, name, None)
            if value:
                self._session.mention(
                    f"{type(inner).__name__}'s own {name}={value} was replaced by --clip"
                )
        after = iter(summed if choice.only_observes else self._after(summed, done, drops))
        pairs = [(None if g is None else next(after), v) for g, v in call.pairs]
        if drops:
            skip = done.skip if skips_by_itself(choice.policy) else None
        else:
            skip = done.skip if choice.may_skip else None
        guarded = inner if drops else call.optimizer
        return done, ReplacedCall(pairs, guarded, skip, is_summed, inner)

    @staticmethod
    def _after(gradients: Sequence[Gradient], done: Stepped, drops: bool) -> list[Gradient]:
        """The clipped gradients; what overflowed as it was, where a `LossScaleOptimizer` looks."""
        leaves = done.leaves
        if drops:
            broken = done.nonfinite > 0
            pairs = zip(gradients, leaves, strict=True)
            leaves = [tf.where(broken, values(merged(was)), now) for was, now in pairs]
        return [relike(was, now) for was, now in zip(gradients, leaves, strict=True)]

    def _choice(self, kind: str) -> Choice:
        mode = self._session.plan.on_nonfinite
        if mode == "raise":
            self._session.mention(
                "--on-nonfinite raise: compiled code cannot raise; steps were skipped"
            )
            mode = "skip"
        return resolve(self._clip, mode, kind)

    def _memory(self, optimizer: object, policy: Policy, names: tuple[str, ...]) -> PolicyMemory:
        memories = self._memories.setdefault(optimizer, {})
        if names not in memories:
            memories[names] = PolicyMemory(policy, names)
        return memories[names]

    @staticmethod
    def _beside(
        policy: Policy, optimizer: object, variables: Sequence[tf.Variable]
    ) -> dict[str, list[tf.Tensor | None]]:
        columns: dict[str, list[tf.Tensor | None]] = {}
        if "weight" in policy.needs:
            columns["weight"] = [tf.convert_to_tensor(variable) for variable in variables]
        if policy.needs & {"second_moment", "step"}:
            moments, seen = [None] * len(variables), None
            if hasattr(optimizer, "iterations"):
                with tf.init_scope():
                    moments = built_moments(cast("OfTfKeras", optimizer), variables)
                seen = tf.convert_to_tensor(cast("OfTfKeras", optimizer).iterations)
            columns["second_moment"] = [
                None if moment is None else tf.convert_to_tensor(moment) for moment in moments
            ]
            columns["step"] = [None if moment is None else seen for moment in moments]
        return columns


def _variable(value: NDArray[np.generic]) -> tf.Variable:
    return tf.Variable(value, trainable=False)
