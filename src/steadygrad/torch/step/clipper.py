"""One step of measuring, deciding and acting on a set of gradients.

Nothing here knows of optimizers or hooks: `Steady` drives it from an optimizer's
step, and a training loop without an optimizer can be driven from elsewhere. On the
CPU the figures are NumPy scalars and Python branches on them; on a device no figure
is read by the host, unless a step must be skipped, raised at or repaired.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

import numpy as np
import torch

from steadygrad.errors import NonFiniteError
from steadygrad.policies import Policy
from steadygrad.policies.base import Decision
from steadygrad.policies.choice import skips_by_itself
from steadygrad.stats import GradientStats, describe_nonfinite
from steadygrad.torch.distributed.sharded import local
from steadygrad.torch.gradients.batch import Batch
from steadygrad.torch.gradients.elementwise import apply_transform
from steadygrad.torch.gradients.measuring import measure_gradients, namespace
from steadygrad.torch.gradients.outcome import UNTOUCHED, Applied, compare, unit_of
from steadygrad.torch.gradients.values import scale_each_once
from steadygrad.torch.step.policy_state import Memory
from steadygrad.vocabulary import OnNonfinite

Scale = Callable[[Sequence[torch.Tensor], Any], None]
"""Multiplies gradients by one coefficient: in place, or inside the optimizer's step."""

Skip = Callable[[torch.Tensor], bool]
"""Takes a 0-d bool on a device that says whether to skip; False where it cannot."""


class Outcome(NamedTuple):
    """What was found and done; 0-d arrays where the gradients live on a device.

    Attributes:
        stats: the figures before clipping.
        threshold: the `max_norm` or `clip_value` in force.
        applied: what is left of the gradients.
        skip: whether the step must be dropped whole; a 0-d tensor where the optimizer was told.
        present: places of the tensors in `stats`, where they are not those of the batch.
    """

    stats: GradientStats
    threshold: Any = float("inf")
    applied: Applied = UNTOUCHED
    skip: Any = False
    present: list[int] | None = None


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
    """

    def __init__(self, policy: Policy, on_nonfinite: OnNonfinite) -> None:
        self.policy = policy
        self.on_nonfinite = on_nonfinite
        self.memory = Memory(policy)
        self.may_skip = on_nonfinite == "skip" or skips_by_itself(policy)
        self.may_stop = self.may_skip or on_nonfinite == "raise"

    def process(
        self,
        batch: Batch,
        step: int,
        scaled: bool = False,
        scale_: Scale = scale_each_once,
        skip: Skip | None = None,
    ) -> Outcome:
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
            return Outcome(stats)
        state, decision = self.memory.decide(stats, batch.present)
        stop = self._stop(stats, decision, scaled)
        offered = skip if self.on_nonfinite not in ("raise", "zero") else None
        taken = offered is not None and isinstance(stop, torch.Tensor) and offered(stop)
        # on a device this is the one bool that the host reads; `propagate` reads none
        if stop is not False and not taken and bool(stop):
            return self._stopped(batch, stats, decision, step, scaled)
        self.memory.state = state
        applied = self.act(batch, stats, decision, scale_)
        return Outcome(stats, decision.threshold, applied, skip=stop if taken else False)

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
        self, batch: Batch, stats: GradientStats, decision: Decision, step: int, scaled: bool
    ) -> Outcome:
        """Skip, raise or repair; the policy keeps the state it had."""
        broken = bool(is_broken(stats))
        if broken and not self._skips(scaled):
            if self.on_nonfinite == "raise":
                raise NonFiniteError(describe_nonfinite(stats, step))
            if self.on_nonfinite == "zero":
                return self._repaired(batch, stats)
        if not broken:  # the policy itself wants to skip, and may count that
            self.memory.state, decision = self.memory.decide(stats, batch.present)
        return Outcome(stats, decision.threshold, skip=True)

    def _repaired(self, batch: Batch, found: GradientStats) -> Outcome:
        zero_nonfinite(batch.grads, found.nonfinite)
        usable = self.measure(batch)
        if bool(is_broken(usable)):  # finite elements whose norm no float64 holds
            scale_each_once(local(batch.grads), 0.0)
            return Outcome(found, applied=Applied(coef=0.0, clipped=True))
        self.memory.state, decision = self.memory.decide(usable, batch.present)
        if decision.skip is not False and bool(decision.skip):
            return Outcome(found, decision.threshold, skip=True)
        applied = self.act(batch, usable, decision, scale_each_once)
        return Outcome(found, decision.threshold, applied)

    def skipped(self, stats: GradientStats, present: list[int] | None = None) -> Outcome:
        """The outcome of a step that is dropped: the policy's state stays as it was."""
        _, decision = self.memory.decide(stats, present)
        return Outcome(stats, decision.threshold, skip=True)

    def measure(self, batch: Batch) -> GradientStats:
        """Read a step's gradients and do nothing else."""
        p = self.policy.norm_type
        return measure_gradients(
            batch.grads, batch.names, batch.sizes, p, batch.scale, batch.spread, batch.present
        )

    def act(self, batch: Batch, stats: GradientStats, decision: Decision, scale_: Scale) -> Applied:
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
        with np.errstate(all="ignore"):  # a norm may be inf, and inf / inf is right to be NaN
            if self.policy.elementwise:
                return apply_transform(self.policy, batch, stats, coef)
            ratios = stats.norms / unit_of(stats)
            return compare(stats, coef * ratios, coef * ratios * ratios, xp.any(coef < 1.0))


def is_broken(stats: GradientStats) -> Any:
    """Whether an element is not finite, or the norm of finite ones is beyond float64; 0-d.

    The second cannot be clipped: there is no coefficient. It counts as the first.
    """
    broken = cast("torch.Tensor", stats.nonfinite).any()
    return broken | ~namespace(stats.norms).isfinite(stats.total_norm)


def zero_nonfinite(grads: Sequence[torch.Tensor], counts: Any) -> None:
    """Replace NaN and inf elements by 0 in the tensors that hold any."""
    with torch.no_grad():
        for grad, count in zip(local(grads), counts.tolist(), strict=True):
            if count:
                values = grad if grad.layout is torch.strided else _values_of(grad)
                parts = torch.view_as_real(values) if values.is_complex() else values
                parts.nan_to_num_(nan=0.0, posinf=0.0, neginf=0.0)
                if values.is_complex():  # a magnitude that no float64 holds is broken as well
                    magnitudes = values.to(torch.complex128).abs()
                    values.masked_fill_(torch.isinf(magnitudes), 0)


def _values_of(sparse: torch.Tensor) -> torch.Tensor:
    coordinates = sparse.layout is torch.sparse_coo
    return (sparse._values() if coordinates else sparse.values()).detach()
