"""Statistics that outliers do not move, against slow definitions written out."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from steadygrad import robust
from steadygrad.stats import MAD_TO_SIGMA


def spikes_one_by_one(norms: Any, ratio: float, deviations: float, window: int) -> list[int]:
    alive = np.flatnonzero(norms > 0)
    logs = np.log(norms[alive])
    usual = np.quantile(logs, 0.9)
    places = []
    for place in range(robust.ENOUGH, len(logs)):
        near = np.r_[logs[max(0, place - window) : place], logs[place + 1 : place + 1 + window]]
        sigma = MAD_TO_SIGMA * np.median(np.abs(near - np.median(near)))
        away = logs[place] - np.median(near)
        over_all = logs[place] > max(usual, np.median(logs) + math.log(ratio))
        if (
            over_all
            and away > max(math.log(ratio), deviations * sigma)
            and logs[place] - usual > math.log(3)
        ):
            places.append(int(alive[place]))
    return places


@pytest.mark.parametrize("seed", range(12))
def test_spikes_are_those_of_the_definition(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(robust, "TOGETHER", 7)  # several batches even here
    rng = np.random.default_rng(seed)
    norms = np.exp(rng.choice([0.1, 0.5]) * rng.standard_normal(400))
    norms[rng.random(400) < 0.05] *= rng.choice([20.0, 1000.0])
    norms[[3, 20, 395]] *= 1000.0  # with less than a window before or after them
    norms[rng.random(400) < 0.05] = 0.0
    found = robust.spikes(norms, 8.0, 6.0, 24)
    assert found.tolist() == spikes_one_by_one(norms, 8.0, 6.0, 24)
    assert len(found)


def test_a_few_values_have_no_spike() -> None:
    assert robust.spikes(np.array([1.0, 1.0, 500.0])).tolist() == []
    assert robust.spikes(np.zeros(40)).tolist() == []
