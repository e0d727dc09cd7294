"""`--clip` in a JAX script: our policy in front of the optimizer, in place of its own clips.

Nothing may be put into the optimizer's state, whose shape the script relies on. So a method
with a memory decides on the host, which the step asks by a callback; one without a memory
is part of the compiled step.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jax import lax
from jax.experimental import io_callback

from steadygrad.jax._varying import splits
from steadygrad.jax._x64 import number, wide, widen
from steadygrad.jax.engine import JaxEngine, floating_leaves
from steadygrad.jax.transform import second_moments
from steadygrad.policies.base import Decision, Policy, State
from steadygrad.policies.choice import Choice
from steadygrad.policies.in_numpy import NUMPY, scalar
from steadygrad.policies.stepping import StepGradients, Stepped, step
from steadygrad.stats import GradientStats

if TYPE_CHECKING:
    from jax.typing import ArrayLike

    from steadygrad.typing import Namespace, PyTree


@dataclass
class HostMemory:
    """A policy's memory, kept on the host.

    Args:
        policy: the one that decides.
    """

    policy: Policy
    state: State = field(default_factory=dict)

    @functools.cached_property
    def scales_as_one(self) -> bool:
        """Whether all tensors are multiplied by one coefficient."""
        two, none = np.ones(2), np.zeros(2, np.int64)
        stats = GradientStats(("x", "y"), two, two, none, none, (1, 1), scalar(1.4))
        state = self.policy.init(NUMPY, stats.names, np.float64, np.int64)
        return self.policy.decide(NUMPY, state, stats)[1].coef.ndim == 0

    def decide(
        self, bits: npt.NDArray[np.uint32], names: tuple[str, ...], sizes: tuple[int, ...]
    ) -> npt.NDArray[np.uint32]:
        """Decide one step from its figures.

        Args:
            bits: whether the step counts, the total norm, then norms, largest magnitudes,
                non-finite elements and zeros of the tensors; float64 as pairs of uint32.
            names: the tensors'.
            sizes: the tensors'.

        Returns:
            Threshold, whether to skip, and a coefficient a tensor, packed likewise.
        """
        row = np.ascontiguousarray(np.asarray(bits)).view(np.float64).ravel()
        norms, max_abs, nonfinite, zeros = row[2:].reshape(4, len(names))
        p = self.policy.norm_type
        stats = GradientStats(names, norms, max_abs, nonfinite, zeros, sizes, scalar(row[1]), p)
        state = self.state or self.policy.init(NUMPY, names, np.float64, np.int64)
        with np.errstate(all="ignore"):
            state, decision = self.policy.decide(NUMPY, state, stats)
        if row[0] and not nonfinite.any():
            self.state = state
        coefs = np.broadcast_to(decision.coef, norms.shape)
        made = np.concatenate([[decision.threshold, bool(decision.skip)], coefs])
        return made.astype(np.float64).view(np.uint32).reshape(-1, 2)


class HostDecided(Policy):
    """A policy whose memory is on the host: asks it at every step.

    Args:
        memory: what it asks.
        counts: 0-d, whether this call is a step and no micro-batch.
    """

    def __init__(self, memory: HostMemory, counts: ArrayLike) -> None:
        self.__dict__.update(memory=memory, counts=counts, policy=memory.policy)

    memory: HostMemory
    counts: ArrayLike
    policy: Policy

    @property
    def elementwise(self) -> bool:
        return self.policy.elementwise

    @property
    def needs(self) -> frozenset[str]:
        return self.policy.needs

    @property
    def norm_type(self) -> float:
        return self.policy.norm_type

    def for_tensor(self, name: str) -> Policy:
        return self.policy.for_tensor(name)

    def decide(self, xp: Namespace, state: State, stats: GradientStats) -> tuple[State, Decision]:
        columns = (stats.norms, stats.max_abs, stats.nonfinite, stats.zeros)
        front = jnp.stack([number(self.counts), stats.total_norm])
        row = jnp.concatenate([front, *(widen(column) for column in columns)])
        bits = lax.bitcast_convert_type(row, jnp.uint32)
        shape = jax.ShapeDtypeStruct((2 + len(stats.names), 2), jnp.uint32)

        def ask(figures: npt.NDArray[np.uint32]) -> npt.NDArray[np.uint32]:
            return self.memory.decide(figures, stats.names, stats.sizes)

        answer = lax.bitcast_convert_type(io_callback(ask, shape, bits), jnp.float64)
        coef = answer[2] if self.memory.scales_as_one else answer[2:]
        return state, Decision(answer[0], coef, answer[1] > 0)


def clips_here(choice: Choice, axes: Sequence[str]) -> bool:
    """Whether a choice can act here: one memory on the host cannot serve several devices."""
    return not (axes and _remembers(choice.policy))


def _remembers(policy: Policy) -> bool:
    return bool(policy.init(NUMPY, ("x",), np.float64, np.int64))


def clip_by(
    choice: Choice,
    memory: HostMemory,
    counts: ArrayLike,
    args: tuple[PyTree, ...],
    axes: tuple[str, ...] = (),
) -> tuple[Stepped, PyTree]:
    """Clip the gradients that an `update` is handed.

    Args:
        choice: what to do.
        memory: the policy's.
        counts: whether this is a step and no micro-batch.
        args: of the `update`: gradients, state and maybe parameters.
        axes: mesh axes that the step is inside of.

    Returns:
        What came of it, and the tree to hand on.
    """
    names, leaves, rebuild = floating_leaves(args[0])
    leaves = [lax.stop_gradient(leaf) for leaf in leaves]
    policy = HostDecided(memory, counts) if _remembers(choice.policy) else choice.policy
    with wide():
        step_gradients = StepGradients(leaves, names, _beside(policy, args, len(leaves)))
        acting = Choice(policy, choice.on_nonfinite)
        done = step(JaxEngine(splits(leaves, axes)), acting, {}, step_gradients, full=True)
    return done, rebuild(done.leaves)


def _beside(policy: Policy, args: tuple[PyTree, ...], count: int) -> dict[str, Sequence[jax.Array]]:
    beside: dict[str, Sequence[jax.Array]] = {}
    if "weight" in policy.needs:
        beside["weight"] = floating_leaves(args[2])[1]
    if "second_moment" in policy.needs:
        moments, seen = second_moments(args[1], policy)
        beside.update(second_moment=moments, step=[seen] * count)
    return beside
