"""The stability score against a plain loop, and what counts in it."""

from __future__ import annotations

import math

import numpy as np
import pytest

import steadygrad
from steadygrad.recovery import RecoveryEvent
from steadygrad.rules.evidence.stability import spiking
from steadygrad.runlog import Event, Run
from steadygrad.vocabulary import RECOVERY

STEPS = 400


def oracle(values: np.ndarray) -> np.ndarray:
    """Six sample deviations over the mean of up to 128 finite values before, 64 at least."""
    past: list[float] = []
    spikes = ~np.isfinite(values)
    for place in np.flatnonzero(~spikes):
        window = np.array(past[-128:])
        if len(window) >= 64:
            unit = np.abs(window).max() or 1.0  # squares of 1e-200 are 0
            mean, sigma = (window / unit).mean(), (window / unit).std(ddof=1)
            spikes[place] = values[place] / unit > mean + 6 * sigma + 1e-6 * abs(mean)
        past.append(values[place])
    return spikes


@pytest.mark.parametrize("scale", [1e-200, 1e-8, 1.0, 1e100])
@pytest.mark.parametrize("noise", [0.0, 0.01, 1.0])
def test_spikes_are_those_of_a_plain_loop(scale: float, noise: float) -> None:
    rng = np.random.default_rng(5)
    values = scale * np.exp(rng.normal(0, noise, 700))
    values[300:] *= 1e5  # another level, so that blocks hold two
    values[rng.integers(0, 700, 12)] *= rng.choice([1.5, 4.0, 30.0, 1e20], 12)
    values[[5, 90, 91, 400]] = np.nan, np.nan, np.inf, -np.inf
    found = spiking(values - (values[200] if noise == 1.0 else 0.0))
    assert found.sum() > 4
    assert found.tolist() == oracle(values - (values[200] if noise == 1.0 else 0.0)).tolist()


def test_a_steep_beginning_is_no_spike() -> None:
    falling = 10.0 * np.exp(-np.arange(STEPS) / 10) + np.random.default_rng(0).normal(
        1, 0.01, STEPS
    )
    assert not spiking(falling).any()
    assert not spiking(falling[:40]).any()


def run_of(events: list[Event] | None = None, **columns: object) -> Run:
    rng = np.random.default_rng(1)
    steps = {"norm": 1 + 0.1 * rng.random(STEPS), "loss": 2 + 0.1 * rng.random(STEPS), **columns}
    return Run.from_arrays(steps=steps, events=events or [])


def act(step: int, name: str, to: int | None = None) -> Event:
    return Event(step, 0.0, RECOVERY, dict(RecoveryEvent(step, name, "loss spike", to).as_json()))


def test_a_quiet_run_scores_nothing_and_a_short_one_is_not_scored() -> None:
    assert steadygrad.stability(run_of()) == (0.0, 0, 0, STEPS)
    short = steadygrad.stability(Run.from_arrays(steps={"norm": np.ones(20)}))
    assert math.isnan(short.score)
    assert short.to_dict()["score"] is None


def test_losses_norms_and_nan_count_and_an_unknown_loss_does_not() -> None:
    loss, norm = run_of().steps["loss"].copy(), run_of().steps["norm"].copy()
    loss[200], norm[250], norm[251], norm[30] = 9.0, 9.0, np.nan, np.inf
    assert steadygrad.stability(run_of(loss=loss, norm=norm))[:2] == (4 / STEPS, 4)
    unknown = np.full(STEPS, np.nan)
    assert steadygrad.stability(run_of(loss=unknown)).spikes == 0
    unknown[:200] = 2.0
    assert steadygrad.stability(run_of(loss=unknown)).spikes == 200


def test_what_recovery_dropped_or_took_back_counts_once() -> None:
    norm = run_of().steps["norm"].copy()
    norm[300:310] = 50.0
    events = [
        act(309, "rollback", 300),
        act(310, "leave out"),
        act(320, "skip"),
        act(330, "accept"),
    ]
    told = steadygrad.stability(run_of(events, norm=norm))
    assert told == (12 / STEPS, 0, 12, STEPS)


def test_the_search_of_a_loss_scale_is_not_unstable() -> None:
    norm, nonfinite = run_of().steps["norm"].copy(), np.zeros(STEPS, np.int64)
    norm[[0, 1, 200]], nonfinite[[0, 1, 200]] = np.inf, 3
    action = np.where(nonfinite > 0, "skip", "none")
    searching = {"norm": norm, "nonfinite": nonfinite, "action": action}
    assert steadygrad.stability(run_of(loss_scale=np.full(STEPS, 1024.0), **searching)).spikes == 0
    assert steadygrad.stability(run_of(**searching)).spikes == 3


def test_optimizers_are_compared_with_themselves_alone() -> None:
    norm = np.where(np.arange(STEPS) % 2, 1000.0, 1.0)
    norm[300] = 5.0
    optimizer = np.arange(STEPS) % 2
    assert steadygrad.stability(run_of(norm=norm, optimizer=optimizer)).spikes == 1
