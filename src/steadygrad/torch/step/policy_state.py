"""A policy's state over the life of an optimizer: tensors without a gradient, tensors added later.

Policies count on the same tensors in the same order at every step. An optimizer does not
give that, so figures are laid out over all its tensors before a policy with a
memory per tensor sees them, and that memory grows when parameters are added.
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from steadygrad.errors import SteadyGradWarning, UsageError
from steadygrad.policies import Policy, State
from steadygrad.policies.base import Decision
from steadygrad.stats import GradientStats
from steadygrad.torch.gradients.measuring import namespace
from steadygrad.torch.internals.warn import warn_user

_NOTHING = nullcontext()


class Memory:
    """One policy's state.

    Args:
        policy: whose state it is.

    Attributes:
        names: of all tensors.
    """

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self.state: State | None = None
        self.names: tuple[str, ...] = ()
        self._sizes: tuple[int, ...] = ()

    def follow(self, names: tuple[str, ...], sizes: tuple[int, ...]) -> None:
        """Take note of all tensors; called again when they change."""
        known, self.names, self._sizes = self.names, names, sizes
        if self.state is None or known == names:
            return
        fresh = _fresh(self.policy, names, next(iter(self.state.values()), np.zeros(0)))
        if names[: len(known)] != known and self.policy.per_tensor:
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
        with self._around(stats, bool(state)):
            state, decision = self.policy.decide(xp, state, whole)
        if spread and decision.coef.ndim:
            decision = replace(decision, coef=decision.coef[present])
        return state, decision

    def _around(self, stats: GradientStats, remembers: bool) -> AbstractContextManager[Any]:
        """What a policy must find while it decides."""
        if isinstance(stats.norms, torch.Tensor):
            return _on_device_of(stats.norms)
        if not remembers and math.isfinite(stats.total_norm):
            return _NOTHING
        return np.errstate(all="ignore")  # a norm may be inf, and inf - inf is right to be NaN

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
        given = {key: tuple(value.shape) for key, value in saved.items()}
        if given and given != shapes:
            raise UsageError(
                f"the saved state of the policy {self.policy.spec()} has the arrays {given}, and "
                f"this one has {shapes}: it was saved over other tensors. Attach to the optimizer "
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
    """What a policy creates while it decides is created beside the figures."""
    elsewhere = isinstance(like, torch.Tensor) and like.device.type != "cpu"
    return torch.device(like.device) if elsewhere else nullcontext()


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
