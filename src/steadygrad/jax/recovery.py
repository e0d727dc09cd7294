"""Recovery of a JAX training: a host-side helper between two steps of any jitted loop.

Compiled code cannot judge by medians of what came before, nor hold snapshots in host memory. So
the helper is given what a step has made, and gives back what the next one is to begin with: the
same trees, save where a step was dropped, a limit is new, or the training goes back.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from steadygrad.errors import UsageError
from steadygrad.jax.recording import Recorder, clip_states
from steadygrad.jax.transform import ClipState
from steadygrad.live.session import open_writer
from steadygrad.policies.gated import CAP, GATES, LIMIT, LOSS_LIMIT, RATE
from steadygrad.policies.stepping import SKIP
from steadygrad.recovery.compiled import CompiledRecovery, FinishedStep, is_finite, rounded_up
from steadygrad.recovery.events import RecoveryEvent
from steadygrad.recovery.judge import Ahead
from steadygrad.recovery.ladder import Ladder, parse_ladder
from steadygrad.runlog import RunWriter

if TYPE_CHECKING:
    from jax.typing import ArrayLike
    from numpy.typing import NDArray

    from steadygrad.typing import PyTree

Tree = TypeVar("Tree")


class TreeValues(NamedTuple):
    """One snapshot: trees of arrays on the host."""

    params: PyTree
    opt_state: PyTree


class _Training:
    """The trees that a step has made, and that the next one is to begin with."""

    def __init__(self) -> None:
        self.params: PyTree = None
        self.opt_state: PyTree = None

    def capture(self) -> tuple[TreeValues, int]:
        content = jax.tree.map(_on_host, TreeValues(self.params, self.opt_state))
        return content, sum(leaf.nbytes for leaf in jax.tree.leaves(content))

    def holds_only_finite(self, content: TreeValues) -> bool:
        trained = (
            content.params,
            jax.tree.map(_without_figures, content.opt_state, is_leaf=_is_clip),
        )
        return _all_finite(trained)

    def weights_are_finite(self) -> bool:
        return all(_is_finite(_on_host(leaf)) for leaf in jax.tree.leaves(self.params))

    def put_back(self, content: TreeValues) -> None:
        now = clip_states(self.opt_state)[0]
        self.params = jax.tree.map(_in_place_of, content.params, self.params)
        state = jax.tree.map(_in_place_of, content.opt_state, self.opt_state)
        # the count of steps goes on, and limits are those of now
        gates = {key: now.policy[key] for key in GATES}
        self.opt_state = _with_clip(
            state, lambda clip: now._replace(policy={**clip.policy, **gates})
        )

    def note_forward(self) -> None:
        """Whatever a forward pass writes is a tree that the script itself hands on."""

    def undo_forward(self) -> None:
        """As above: the script keeps or drops it, by the action in the state."""


class Recovery:
    """Judges each step of a loop of your own, and goes back where one is struck.

    Figures are read on the host after each step, so that each waits for the one before.

    Args:
        recover: ``"auto"``, ``"palm"``, rungs such as ``"skip:2+rollback:4"``, or a
            `steadygrad.recovery.Ladder`.
        run: a `Recorder`, a `RunWriter` or a path for a new run file, which takes what was done;
            None for none.

    Raises:
        SpecError: a spec that cannot be read.
        UsageError: the ladder names a folder, or the training has several processes.

    Example:
        >>> import jax, jax.numpy as jnp, optax, steadygrad.jax as sg
        >>> recovery = sg.Recovery("auto")
        >>> tx = sg.guard(optax.sgd(0.1), recover=recovery)
        >>> params = {"w": jnp.zeros(2)}
        >>> state = tx.init(params)
        >>> for step in range(3):
        ...     grads = {"w": jnp.array([jnp.nan if step == 1 else 1.0, 0.0])}
        ...     updates, state = tx.update(grads, state, params)
        ...     params = optax.apply_updates(params, updates)
        ...     params, state = recovery.after_step(params, state)
        >>> [str(act) for act in recovery.acts], [round(float(x), 2) for x in params["w"]]
        (['step 1: gradients not finite: skip'], [-0.2, 0.0])
    """

    def __init__(
        self,
        recover: str | Ladder = "auto",
        *,
        run: Recorder | RunWriter | str | os.PathLike[str] | None = None,
    ) -> None:
        if jax.process_count() > 1:
            raise UsageError(
                "Recovery serves a training of one process: a snapshot is of whole arrays"
            )
        if run is None:
            self._writer: RunWriter | None = None
        else:
            self._writer = run.writer if isinstance(run, Recorder) else open_writer(run)
        self._training = _Training()
        self._recovery = CompiledRecovery(parse_ladder(recover), self._training, self._write_event)
        self._recovery.run = None if self._writer is None else self._writer.path
        self._judged = 0
        self._ahead = Ahead()

    @property
    def acts(self) -> list[RecoveryEvent]:
        """What was done so far, in order."""
        return list(self._recovery.acts)

    def after_step(
        self,
        params: Tree,
        opt_state: PyTree,
        loss: ArrayLike | None = None,
        again: Callable[[], PyTree] | None = None,
    ) -> tuple[Tree, PyTree]:
        """A step is over: what the next one is to begin with.

        Call it outside of `jit`, after each update. A second call without a step in between, as
        while `optax.MultiSteps` adds up, changes nothing.

        Args:
            params: the parameters that the step has made, in any tree; moving averages or a
                random key that are to go back with them may stand in it too.
            opt_state: the optimizer's state, which holds one `guard` made with ``recover=``.
            loss: the step's, 0-d; None where it is not known.
            again: computes loss and gradients of this step's batch once more, for example
                ``lambda: value_and_grad(params, x)``; called where the step was dropped for a NaN
                or inf, so that `params` are those it began with. The act's `nature` then says
                whether the NaN was there again.

        Returns:
            Parameters and state.

        Raises:
            RecoveryError: the ladder has nothing left. `params` and `opt_state` of the last good
                step stand in `last_good`.
            UsageError: no such guard in the state, or the snapshots do not fit the memory budget.
        """
        clip = _gated_state(opt_state)
        count = int(clip.step)
        if count <= self._judged:
            return params, opt_state
        self._judged = count
        training = self._training
        training.params, training.opt_state = params, opt_state
        value = math.nan if loss is None else float(loss)
        dropped = int(clip.action) == SKIP
        figures = FinishedStep(count - 1, value, float(clip.norm), dropped, False, loss is not None)
        ahead = self._recovery.after_step(
            figures, None if again is None else lambda: _all_finite(again())
        )
        if ahead != self._ahead or ahead.norm_limit < 0:
            self._ahead = ahead
            training.opt_state = _with_gates(training.opt_state, ahead)
        tree: Tree = training.params
        return tree, training.opt_state

    @property
    def last_good(self) -> tuple[PyTree, PyTree]:
        """Parameters and state as they were after the last call, also one that raised."""
        return self._training.params, self._training.opt_state

    def _write_event(
        self, kind: str, data: Mapping[str, str | int | None], step: int | None
    ) -> None:
        if self._writer is not None:
            self._writer.write_event(kind, data, step)


def _is_clip(node: object) -> bool:
    return isinstance(node, ClipState)


def _gated_state(opt_state: PyTree) -> ClipState:
    states = [state for state in clip_states(opt_state) if LIMIT in state.policy]
    if len(states) != 1:
        raise UsageError(
            f"after_step needs a state with one guard that heeds it, and found {len(states)}; type "
            "tx = steadygrad.jax.guard(optax.adam(...), recover=recovery)"
        )
    return states[0]


def _with_clip(opt_state: PyTree, change: Callable[[ClipState], ClipState]) -> PyTree:
    def changed(node: object) -> object:
        gated = isinstance(node, ClipState) and LIMIT in node.policy
        return change(node) if isinstance(node, ClipState) and gated else node

    return jax.tree.map(changed, opt_state, is_leaf=_is_clip)


def _with_gates(opt_state: PyTree, ahead: Ahead) -> PyTree:
    limits = {
        LIMIT: rounded_up(ahead.norm_limit),
        LOSS_LIMIT: rounded_up(ahead.loss_limit),
        CAP: ahead.cap,
        RATE: ahead.lr_factor,
    }

    def opened(clip: ClipState) -> ClipState:
        new = {key: _like(value, clip.policy[key]) for key, value in limits.items()}
        return clip._replace(policy={**clip.policy, **new})

    return _with_clip(opt_state, opened)


def _like(value: float, old: jax.Array) -> jax.Array:
    return _placed(np.asarray(value, old.dtype), old)


def _placed(value: NDArray[np.generic], like: jax.Array) -> jax.Array:
    """An array where another one is; uncommitted as that is, or a step would be compiled anew."""
    if getattr(like, "committed", True):
        return jax.device_put(value, like.sharding)
    return jnp.asarray(value)


def _on_host(leaf: jax.Array) -> jax.Array | NDArray[np.generic]:
    if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return leaf  # a key of its own type: immutable, and a few bytes
    return np.array(leaf)


def _in_place_of(saved: object, now: object) -> object:
    if isinstance(saved, np.ndarray) and isinstance(now, jax.Array):
        return _placed(saved.copy(), now)  # a CPU may use the very memory
    return saved


def _without_figures(node: object) -> object:
    return () if _is_clip(node) else node


def _all_finite(tree: PyTree) -> bool:
    return all(map(_is_finite, jax.tree.leaves(tree)))


def _is_finite(leaf: jax.Array | NDArray[np.generic]) -> bool:
    kind = getattr(leaf, "dtype", np.dtype(float))  # a random key is no inexact kind either
    return not jnp.issubdtype(kind, jnp.inexact) or is_finite(np.asarray(leaf))
