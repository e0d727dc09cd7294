"""Down-sampling must not hide what the reader came for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steadygrad.report.curves import keep, lanes, off_scale, series, trend
from steadygrad.runlog import Run


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    n=st.integers(41, 3000),
    bad=st.integers(0, 40),
    buckets=st.integers(3, 10),
)
def test_every_bucket_keeps_its_extremes_and_its_first_non_finite(
    seed: int, n: int, bad: int, buckets: int
) -> None:
    r = np.random.default_rng(seed)
    values = r.normal(size=n)
    values[r.integers(0, n, bad)] = r.choice([np.nan, np.inf, -np.inf])
    kept = keep(values, buckets)
    width = -(-n // buckets) if n > 4 * buckets else 1
    assert (np.diff(kept) > 0).all()
    assert {0, n - 1} <= set(kept.tolist())
    for start in range(0, n, width):
        part = values[start : start + width]
        inside = values[kept[(kept >= start) & (kept < start + width)]]
        finite = part[np.isfinite(part)]
        if finite.size:
            assert finite.max() in inside
            assert finite.min() in inside
        assert np.isfinite(part).all() == np.isfinite(inside).all()


def test_a_long_series_becomes_short() -> None:
    values = np.random.default_rng(0).normal(size=100_000)
    assert len(keep(values)) <= 3 * 600 + 2


def test_a_single_spike_in_a_hundred_thousand_steps_is_drawn() -> None:
    norm = np.ones(100_000)
    norm[61_803] = 1e6
    drawn = series(Run.from_arrays(steps={"norm": norm}).steps)["norm"]
    assert (61_803, 1e6) in list(zip(drawn["step"], drawn["value"], strict=True))


@pytest.mark.parametrize("n", [50, 5000])
def test_off_scale_marks_count_every_non_finite_step_once(n: int) -> None:
    r = np.random.default_rng(1)
    values = r.normal(size=n)
    values[r.choice(n, n // 7, replace=False)] = np.nan
    values[r.choice(np.flatnonzero(np.isfinite(values)), 5, replace=False)] = np.inf
    marks = off_scale(np.arange(n), values, log=False)
    for kind, seen in (("nan", np.isnan(values)), ("inf", np.isinf(values))):
        of_kind = [m for m in marks if m["kind"] == kind]
        assert sum(m["count"] for m in of_kind) == seen.sum()
        assert min(m["first"] for m in of_kind) == np.flatnonzero(seen)[0]
        assert max(m["last"] for m in of_kind) == np.flatnonzero(seen)[-1]


def test_a_norm_of_zero_is_off_a_log_scale_and_breaks_the_line() -> None:
    norm = np.ones(100)
    norm[40] = 0.0
    drawn = series(Run.from_arrays(steps={"norm": norm}).steps)["norm"]
    assert drawn["value"][40] is None
    assert drawn["off_scale"] == [{"kind": "zero", "first": 40, "last": 40, "count": 1}]


def test_the_trend_is_a_median_of_finite_steps() -> None:
    values = np.full(1000, 2.0)
    values[::3], values[5] = np.nan, 1e9
    told = trend(np.arange(1000), values)
    assert set(told["value"]) == {2.0}
    assert len(told["step"]) == 160


def test_lanes_count_every_clipped_and_skipped_step(a_run: Callable[..., Run]) -> None:
    run = a_run(3000, clip=1.0)
    run.steps["action"][[7, 8, 2999]] = "skip"
    told = lanes(run.steps)
    assert sum(lane["clipped"] for lane in told) == (run.steps["action"] == "clip").sum()
    assert sum(lane["skipped"] for lane in told) == 3


@pytest.mark.parametrize(
    ("coef_of", "comparable"), [(lambda n: 0.5 / n, True), (lambda n: np.full_like(n, 0.9), False)]
)
def test_a_threshold_is_drawn_against_the_norm_only_where_it_is_one(
    coef_of: Callable[[Any], Any], comparable: bool
) -> None:
    norm = np.linspace(1.0, 3.0, 60)
    run = Run.from_arrays(
        steps={
            "norm": norm,
            "threshold": np.full(60, 0.5),
            "coef": coef_of(norm),
            "action": ["clip"] * 60,
        }
    )
    assert series(run.steps)["norm"]["threshold_of_norm"] is comparable


def test_the_cosine_is_kept_where_a_direction_was_turned() -> None:
    norm = np.ones(50)
    straight = series(Run.from_arrays(steps={"norm": norm}).steps)
    turned = series(Run.from_arrays(steps={"norm": norm, "cosine": np.full(50, 0.8)}).steps)
    assert straight["cosine"] is None
    assert turned["cosine"]["value"] == [0.8] * 50
