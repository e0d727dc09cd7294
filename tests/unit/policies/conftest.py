"""Norm sequences like those that trainings record, and a driver for policies."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from steadygrad.policies import Policy, State
from steadygrad.stats import GradientStats, combine_norms

NAMES = ("embedding.weight", "rnn.weight_hh_l0", "head.weight")


def stats_of(xp: Any, norms: Any, norm_type: float = 2.0) -> GradientStats:
    """Stats of one step whose tensors have these norms."""
    norms = xp.asarray(norms)
    broken = xp.logical_not(xp.isfinite(norms))
    return GradientStats(
        names=NAMES[: norms.shape[0]],
        norms=norms,
        max_abs=xp.where(broken, xp.zeros_like(norms), norms),
        nonfinite=xp.where(broken, xp.ones_like(norms), xp.zeros_like(norms)),
        zeros=xp.zeros_like(norms),
        sizes=(1,) * norms.shape[0],
        total_norm=combine_norms(xp, norms, norm_type),
        norm_type=norm_type,
    )


class Trace:
    """A policy's decisions over a sequence.

    Attributes:
        thresholds: ``[steps]``.
        coefs: ``[steps, tensors]``.
        skips: ``[steps]`` bool.
        states: the state after each step.
    """

    def __init__(
        self,
        policy: Policy,
        norms: Any,
        state: State | None = None,
        xp: Any = np,
        dtype: Any = None,
    ) -> None:
        dtype = xp.float64 if dtype is None else dtype
        if state is None:
            state = policy.init(xp, NAMES[: norms.shape[1]], dtype, xp.int64)
        thresholds, coefs, skips, self.states = [], [], [], []
        for row in norms:
            state, decision = policy.decide(xp, state, stats_of(xp, xp.asarray(row, dtype=dtype)))
            thresholds.append(float(decision.threshold))
            coefs.append(np.broadcast_to(np.asarray(decision.coef, dtype=float), norms.shape[1]))
            skips.append(bool(decision.skip))
            self.states.append(state)
        self.thresholds, self.coefs = np.array(thresholds), np.array(coefs)
        self.skips = np.array(skips)


@pytest.fixture
def trace() -> type[Trace]:
    """Runs a policy over norms, ``[steps, tensors]``."""
    return Trace


@pytest.fixture
def stats() -> Any:
    """Makes stats of one step: ``stats(xp, norms)``."""
    return stats_of


@pytest.fixture
def calm() -> Any:
    """240 steps of three tensors without anything odd."""
    return np.exp(np.random.default_rng(5).normal([-0.5, 0.0, 0.4], 0.3, (240, 3)))


@pytest.fixture
def spiky(calm: Any) -> Any:
    """The same with spikes, one behind another among them, and a norm of 1e20."""
    rows = calm.copy()
    for step, factor in ((120, 40.0), (123, 15.0), (200, 1e20), (203, 30.0), (204, 12.0)):
        rows[step] *= factor
    return rows


@pytest.fixture
def total() -> Any:
    """The total norm of each row."""

    def of(rows: Sequence[Any]) -> Any:
        rows = np.asarray(rows, dtype=np.longdouble)
        return np.sqrt((rows**2).sum(axis=1)).astype(np.float64)

    return of
