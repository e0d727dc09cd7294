"""One step of measuring, deciding and acting on a set of gradients.

Nothing here knows of optimizers or hooks: `Steady` drives it from an optimizer's
step, and a training loop without an optimizer can be driven from elsewhere. On the
CPU the figures are NumPy scalars and Python branches on them; on a device no figure
is read by the host, unless a step must be skipped, raised at or repaired.

A policy counts on the same tensors in the same order at every step. An optimizer does not
give that, so figures are laid out over all its tensors before a policy with a memory per
tensor sees them, and that memory grows when parameters are added.

A norm may be inf, and inf - inf is right to be NaN: who drives a `Clipper` has NumPy ignore that
(`np.errstate`), once around all that a step does.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from steadygrad.errors import NonFiniteError, SteadyGradWarning, UsageError
from steadygrad.policies import Policy, State
from steadygrad.policies.base import Decision
from steadygrad.policies.choice import skips_by_itself
from steadygrad.stats import GradientStats, describe_nonfinite
from steadygrad.torch.clip_calls.clips import QuietSteps
from steadygrad.torch.gradients.batch import GradientBatch
from steadygrad.torch.gradients.elementwise import apply_transform
from steadygrad.torch.gradients.measuring import measure_gradients, namespace
from steadygrad.torch.gradients.outcome import (
    Applied,
    StepOutcome,
    compare,
    is_broken,
    unit_of,
)
from steadygrad.torch.gradients.pieces import local, scale_each_once, zero_nonfinite
from steadygrad.torch.internals.warn import warn_user
from steadygrad.vocabulary import OnNonfinite

Scale = Callable[[Sequence[torch.Tensor], Any], None]
"""Multiplies gradients by one coefficient: in place, or inside the optimizer's step."""

_NOTHING = nullcontext()

Skip = Callable[[torch.Tensor], bool]
"""Takes a 0-d bool on a device that says whether to skip; False where it cannot."""


class Clipper:
    """A policy at work on named gradients, with its state.

    Args:
        policy: how to clip.
        on_nonfinite: what to do with gradients that hold NaN or inf.

    Attributes:
        policy: how to clip.
        on_nonfinite: what to do with gradients that hold NaN or inf.
        memory: the policy's state.
        may_skip: whether a step may be skipped.
        may_stop: whether a step may end in nothing: skipped, or by an error.
        quiet: says of which steps nothing is decided, so that they may go by without `process`;
            None where there are none.
        waits: a step is recorded when it is over: what is in it may clip.
    """

    quiet: QuietSteps | None = None
    waits = False

    def __init__(self, policy: Policy, on_nonfinite: OnNonfinite) -> None:
        self.policy = policy
        self.on_nonfinite = on_nonfinite
        self._norm_type = policy.norm_type
        self.memory = Memory(policy)
        self.may_skip = on_nonfinite == "skip" or skips_by_itself(policy)
        self.may_stop = self.may_skip or on_nonfinite == "raise"

    def after_step(self, outcome: StepOutcome, batch: GradientBatch) -> StepOutcome:
        """A step is over that `waits`.

        Args:
            outcome: what was found and done before it.
            batch: its gradients, as they are now.

        Returns:
            What is to be recorded.
        """
        return outcome

    def process(
        self,
        batch: GradientBatch,
        step: int,
        scaled: bool = False,
        scale_: Scale = scale_each_once,
        skip: Skip | None = None,
    ) -> StepOutcome:
        """Measure a step's gradients and act on them.

        Args:
            batch: the gradients; changed in place.
            step: number of the step, for messages.
            scaled: whether a GradScaler guards the step: it will drop it, whatever is done here.
            scale_: how to multiply all gradients by one coefficient.
            skip: offered the flag to skip, where that is on a device; True if it took it.

        Raises:
            NonFiniteError: gradients are not finite and `on_nonfinite` is ``raise``.
        """
        if batch.present is None and batch.names is not self.memory.names:
            self.memory.follow(batch.names, batch.sizes)
        stats = self.measure(batch)
        if not batch.grads:
            return StepOutcome(stats)
        state, decision = self.memory.decide(stats, batch.present)
        stop = self._stop(stats, decision, scaled)
        offered = skip if self.on_nonfinite not in ("raise", "zero") else None
        taken = offered is not None and isinstance(stop, torch.Tensor) and offered(stop)
        # on a device this is the one bool that the host reads; `propagate` reads none
        if stop is not False and not taken and bool(stop):
            return self._stopped(batch, stats, decision, step, scaled)
        self.memory.state = state
        applied = self.act(batch, stats, decision, scale_)
        return StepOutcome(stats, decision.threshold, applied, skip=stop if taken else False)

    def _skips(self, scaled: bool) -> bool:
        return scaled or self.on_nonfinite == "skip"

    def _stop(self, stats: GradientStats, decision: Decision, scaled: bool) -> Any:
        """Whether the step cannot go on as decided; False where nothing can stop it."""
        guarded = scaled or self.on_nonfinite != "propagate"
        if not guarded:
            return decision.skip
        if isinstance(stats.total_norm, float) and math.isfinite(stats.total_norm):
            return decision.skip  # then no element can be broken
        broken = is_broken(stats)
        return broken if decision.skip is False else broken | decision.skip

    def _stopped(
        self,
        batch: GradientBatch,
        stats: GradientStats,
        decision: Decision,
        step: int,
        scaled: bool,
    ) -> StepOutcome:
        """Skip, raise or repair; the policy keeps the state it had."""
        broken = bool(is_broken(stats))
        if broken and not self._skips(scaled):
            if self.on_nonfinite == "raise":
                raise NonFiniteError(describe_nonfinite(stats, step))
            if self.on_nonfinite == "zero":
                return self._repaired(batch, stats)
        if not broken:  # the policy itself wants to skip, and may count that
            self.memory.state, decision = self.memory.decide(stats, batch.present)
        return StepOutcome(stats, decision.threshold, skip=True)

    def _repaired(self, batch: GradientBatch, broken: GradientStats) -> StepOutcome:
        zero_nonfinite(batch.grads, broken.nonfinite)
        usable = self.measure(batch)
        if bool(is_broken(usable)):  # finite elements whose norm no float64 holds
            scale_each_once(local(batch.grads), 0.0)
            return StepOutcome(broken, applied=Applied(coef=0.0, clipped=True))
        self.memory.state, decision = self.memory.decide(usable, batch.present)
        if decision.skip is not False and bool(decision.skip):
            return StepOutcome(broken, decision.threshold, skip=True)
        applied = self.act(batch, usable, decision, scale_each_once)
        return StepOutcome(broken, decision.threshold, applied)

    def skipped(self, stats: GradientStats, present: list[int] | None = None) -> StepOutcome:
        """The outcome of a step that is dropped: the policy's state stays as it was."""
        _, decision = self.memory.decide(stats, present)
        return StepOutcome(stats, decision.threshold, skip=True)

    def measure(self, batch: GradientBatch) -> GradientStats:
        """Read a step's gradients and do nothing else."""
        return measure_gradients(
            batch.grads,
            batch.names,
            batch.sizes,
            self._norm_type,
            batch.scale,
            batch.spread,
            batch.present,
        )

    def act(
        self, batch: GradientBatch, stats: GradientStats, decision: Decision, scale_: Scale
    ) -> Applied:
        """Do what was decided."""
        xp, coef = namespace(stats.norms), decision.coef
        if not isinstance(coef, np.float64):
            coef = xp.asarray(coef)
        if not self.policy.elementwise and coef.ndim == 0:
            if isinstance(coef, torch.Tensor) or coef < 1.0:
                scale_(local(batch.grads), coef)
            return Applied(coef=coef, cosine=1.0, clipped=coef < 1.0)
        if coef.ndim:
            scale_each_once(local(batch.grads), coef)
        if self.policy.elementwise:
            return apply_transform(self.policy, batch, stats, coef)
        ratios = stats.norms / unit_of(stats)
        return compare(stats, coef * ratios, coef * ratios * ratios, xp.any(coef < 1.0))


class Memory:
    """One policy's state over the life of an optimizer.

    Args:
        policy: whose state it is.

    Attributes:
        names: of all tensors of the optimizer, also of those without a gradient.
    """

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self.state: State | None = None
        self.names: tuple[str, ...] = ()
        self._sizes: tuple[int, ...] = ()

    def follow(self, names: tuple[str, ...], sizes: tuple[int, ...]) -> None:
        """Take note of all tensors; called again when they change."""
        earlier, self.names, self._sizes = self.names, names, sizes
        if self.state is None or earlier == names:
            return
        fresh = _fresh(self.policy, names, next(iter(self.state.values()), np.zeros(0)))
        if names[: len(earlier)] != earlier and self.policy.per_tensor:
            warn_user(
                "the optimizer's parameters were rearranged, so what the policy "
                f"{self.policy.spec()} remembers of each tensor starts anew",
                SteadyGradWarning,
            )
            self.state = fresh
            return
        self.state = {
            key: _grown(value, self.state.get(key), key in self.policy.per_tensor)
            for key, value in fresh.items()
        }

    def decide(self, stats: GradientStats, present: list[int] | None) -> tuple[State, Decision]:
        """Ask the policy; the state that follows is returned, not kept.

        Args:
            stats: the step's figures.
            present: the places of its tensors among all; None for all.

        Returns:
            The next state, and a decision whose coefficients are those of the tensors in `stats`.
        """
        xp = namespace(stats.norms)
        spread = present is not None and bool(self.policy.per_tensor)
        whole = self._laid_out(stats, present) if spread else stats
        names = whole.names if self.policy.per_tensor else self.names or whole.names
        if self.state is None:
            self.state = _fresh(self.policy, names, stats.norms)
        state = {key: _moved(value, stats.norms) for key, value in self.state.items()}
        with _on_device_of(stats.norms):
            state, decision = self.policy.decide(xp, state, whole)
        if spread and decision.coef.ndim:
            decision = replace(decision, coef=decision.coef[present])
        return state, decision

    def export(self) -> dict[str, torch.Tensor]:
        """Copies of the arrays as torch tensors on the CPU, which any checkpoint holds.

        Before the first step they are those that it begins with: a checkpoint that is read in
        place (`torch.distributed.checkpoint`) reads nothing that is not there yet.
        """
        state = self.state or _fresh(self.policy, self.names, np.zeros(0))
        return {key: torch.as_tensor(value).detach().cpu().clone() for key, value in state.items()}

    def load(self, saved: dict[str, Any]) -> None:
        """Take over what `export` gave.

        Raises:
            UsageError: it is not of this policy over these tensors.
        """
        fresh = _fresh(self.policy, self.names, np.zeros(0))
        shapes = {key: tuple(value.shape) for key, value in fresh.items()}
        saved_shapes = {key: tuple(value.shape) for key, value in saved.items()}
        if saved_shapes and saved_shapes != shapes:
            raise UsageError(
                f"the saved state of the policy {self.policy.spec()} has the arrays "
                f"{saved_shapes}, and this one has {shapes}: it was saved over other tensors. "
                "Attach to the optimizer "
                "of the model that was saved, or attach anew without load_state_dict"
            )
        self.state = {key: np.array(value.cpu().numpy()) for key, value in saved.items()} or None

    def _laid_out(self, stats: GradientStats, present: list[int] | None) -> GradientStats:
        """The figures over all tensors: those without a gradient have norm 0."""

        def spread(values: Any) -> Any:
            xp, size = namespace(values), len(self.names)
            beside = {"device": values.device} if isinstance(values, torch.Tensor) else {}
            whole = xp.zeros(size, dtype=values.dtype, **beside)
            whole[present] = values
            return whole

        return replace(
            stats,
            names=self.names,
            sizes=self._sizes,
            norms=spread(stats.norms),
            max_abs=spread(stats.max_abs),
            nonfinite=spread(stats.nonfinite),
            zeros=spread(stats.zeros),
        )


def _fresh(policy: Policy, names: tuple[str, ...], like: object) -> State:
    xp = namespace(like)
    return policy.init(xp, names, xp.float64, xp.int64)


def _on_device_of(like: Any) -> AbstractContextManager[object]:
    """A context in which new arrays are created on the device of the figures."""
    elsewhere = isinstance(like, torch.Tensor) and like.device.type != "cpu"
    return torch.device(like.device) if elsewhere else _NOTHING


def _grown(fresh: Any, old: Any, per_tensor: bool) -> Any:
    if old is None or not per_tensor:
        return fresh if old is None else old
    grown = fresh.copy() if isinstance(fresh, np.ndarray) else fresh.clone()
    grown[: len(old)] = old
    return grown


def _moved(value: object, like: object) -> Any:
    """An array where the figures are: NumPy, or a tensor on their device."""
    if isinstance(like, torch.Tensor):
        return torch.as_tensor(value, device=like.device)
    return value.numpy() if isinstance(value, torch.Tensor) else value
