"""Adaptive methods against references that are written from the papers' formulas."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from steadygrad.policies import AdaGC, Auto, AutoClip, NormSchedule, SkipSpike, ZClip
from steadygrad.policies.history import TOLERANCE

# float64 sums and products in another order: a few ulp a step, over 300 steps
RTOL = 300 * 4 * np.finfo(float).eps


def zclip_reference(norms: Any, z: float, alpha: float, warmup: int, fixed: float) -> Any:
    """Thresholds of ZClip, mean and variance kept as plain numbers."""
    buffer, mean, variance, thresholds = [], 0.0, 0.0, []
    for norm in norms:
        if len(buffer) < warmup:
            thresholds.append(fixed)
            buffer.append(norm)
            mean, variance = np.mean(buffer), np.var(buffer)
            continue
        deviation = np.sqrt(variance)
        score = (norm - mean) / (deviation + 1e-6)
        limit = mean + z * (deviation + 1e-6)
        seen = norm
        if score > z:
            limit = seen = mean + z * deviation / (score / z)
        thresholds.append(min(limit, fixed))
        mean = alpha * mean + (1 - alpha) * seen
        variance = alpha * variance + (1 - alpha) * (seen - mean) ** 2
    return np.array(thresholds)


@pytest.mark.parametrize("fixed", [1.0, np.inf])
def test_zclip(trace: Any, spiky: Any, total: Any, fixed: float) -> None:
    got = trace(ZClip(max_norm=fixed), spiky)
    norms = total(spiky)
    expected = zclip_reference(norms, 2.5, 0.97, 25, fixed)
    np.testing.assert_allclose(got.thresholds, expected, rtol=RTOL)
    np.testing.assert_allclose(got.coefs[:, 0], np.minimum(1, expected / norms), rtol=RTOL)
    assert (got.coefs[[120, 123, 200, 203, 204]] < 0.2).all()


def autoclip_reference(norms: Any, percentile: float, window: int) -> Any:
    """Thresholds of AutoClip: numpy's own percentile over the stored history."""
    starts = [max(0, t + 1 - window) if window else 0 for t in range(len(norms))]
    return np.array([np.percentile(norms[a : t + 1], percentile) for t, a in enumerate(starts)])


@pytest.mark.parametrize("percentile", [0.0, 10.0, 50.0, 97.3, 100.0])
def test_autoclip_over_a_window_is_exact(
    trace: Any, spiky: Any, total: Any, percentile: float
) -> None:
    got = trace(AutoClip(percentile, window=50), spiky)
    expected = autoclip_reference(total(spiky), percentile, 50)
    np.testing.assert_allclose(got.thresholds, expected, rtol=RTOL)


def test_autoclip_over_a_window_as_long_as_the_run_is_the_paper(
    trace: Any, spiky: Any, total: Any
) -> None:
    got = trace(AutoClip(10, window=240), spiky)
    np.testing.assert_allclose(got.thresholds, autoclip_reference(total(spiky), 10, 0), rtol=RTOL)


@pytest.mark.parametrize("percentile", [10.0, 50.0, 90.0])
def test_autoclip_over_the_whole_history_keeps_its_tolerance(
    trace: Any, total: Any, percentile: float
) -> None:
    rows = np.exp(np.random.default_rng(1).normal(0, 2.0, (800, 1)))
    rows[77] = 1e9  # far out, within the sketch's range of the first norm
    got = trace(AutoClip(percentile), rows)
    expected = autoclip_reference(total(rows), percentile, 0)
    error = np.abs(got.thresholds / expected - 1)
    assert error.max() <= TOLERANCE + RTOL
    assert got.states[-1]["cumulative"].size == 16_384


def test_autoclip_does_not_clip_what_equals_its_threshold(trace: Any) -> None:
    rows = np.full((50, 1), 3.7)
    for policy in (AutoClip(10), AutoClip(10, window=20), AutoClip(100)):
        assert (trace(policy, rows).coefs == 1.0).all()
    # in the upper part of a bin of the sketch, over the figure that stands for the bin
    rows[1:] = np.exp(100.9 * np.log(1 + TOLERANCE)) * rows[0]
    assert (trace(AutoClip(50), rows).coefs[3:] == 1.0).all()


def adagc_reference(rows: Any, rel: float, absolute: float, beta: float, warmup: int) -> Any:
    """Coefficients of AdaGC, tensor by tensor."""
    gamma, coefs = None, []
    for step, norms in enumerate(rows):
        if step < warmup:
            coef = np.full(norms.shape, min(1.0, absolute / np.sqrt((norms**2).sum())))
            clipped = coef * norms
            gamma = clipped if gamma is None else np.minimum(gamma, clipped)
        else:
            coef = np.minimum(rel * gamma / norms, 1.0)
            gamma = beta * gamma + (1 - beta) * coef * norms
        coefs.append(coef)
    return np.array(coefs)


def test_adagc(trace: Any, spiky: Any) -> None:
    spiky[200] /= 1e10  # the reference squares its norms
    got = trace(AdaGC(), spiky)
    np.testing.assert_allclose(got.coefs, adagc_reference(spiky, 1.05, 1.0, 0.98, 100), rtol=RTOL)
    assert (got.coefs[200] < 1e-8).all()


def test_adagc_does_not_silence_a_tensor_that_began_without_gradient(trace: Any, calm: Any) -> None:
    calm[:150, 1] = 0.0
    got = trace(AdaGC(), calm)
    assert (got.coefs > 0).all()
    assert got.coefs[150, 1] == 1.0
    assert got.states[-1]["gamma"][1] > 0


def skip_reference(norms: Any, rule: str) -> Any:
    """Which steps are skipped: statistics over a list of the last 128 clean norms."""
    clean, streak, skips = [], 0, []
    for norm in norms:
        window = np.array(clean[-128:])
        skip = False
        if len(window) >= 64 and rule == "mad":
            logs = np.log(window)
            middle = np.median(logs)
            mad = np.median(np.abs(logs - middle))
            skip = np.log(norm) > middle + max(6 * 1.4826 * mad, np.log(2))
        elif len(window) >= 64:
            limit = window.mean() + 6 * window.std(ddof=1)
            skip = norm > max(limit, 2 * window.mean())
        skips.append(skip)
        streak = streak + 1 if skip else 0
        if not skip:
            clean.append(norm)
        if streak >= 10:
            clean, streak = [], 0
    return np.array(skips)


@pytest.mark.parametrize("rule", ["mad", "sigma"])
def test_skip_spike(trace: Any, spiky: Any, total: Any, rule: str) -> None:
    got = trace(SkipSpike(rule=rule), spiky)
    np.testing.assert_array_equal(got.skips, skip_reference(total(spiky), rule))
    assert set(np.flatnonzero(got.skips)) >= {120, 123, 200, 203, 204}


def test_skip_spike_accepts_a_new_level(trace: Any, calm: Any, total: Any) -> None:
    calm[150:] *= 50
    got = trace(SkipSpike(), calm)
    np.testing.assert_array_equal(got.skips, skip_reference(total(calm), "mad"))
    assert np.flatnonzero(got.skips).tolist() == list(range(150, 160))


def test_a_broken_step_neither_ends_a_row_of_skips_nor_is_one(trace: Any, calm: Any) -> None:
    calm *= 1e-3
    calm[150:] *= 50
    calm[155] = np.nan
    skips = trace(SkipSpike(), calm).skips
    assert np.flatnonzero(skips).tolist() == [step for step in range(150, 161) if step != 155]


def auto_reference(norms: Any) -> Any:
    """Thresholds of Auto, from NumPy's quantiles of a list."""
    seen, first, reference, thresholds = [], 0.0, 0.0, []
    for norm in norms:
        window = np.log(seen[-128:]) if seen else np.zeros(1)
        middle, upper = np.quantile(window, [0.5, 0.75])
        first = middle if len(seen) <= 20 else first
        reference = min(middle, first + np.log(10)) if len(seen) <= 128 else reference
        reach = np.clip(3 * 1.4826 * (upper - middle), np.log(1.25), np.log(4))
        highest = max(reference + np.log(0.2), 0.0)
        thresholds.append(np.exp(min(middle + reach, highest)) if len(seen) >= 20 else 1.0)
        seen.append(norm)
    return np.array(thresholds)


@pytest.mark.parametrize("scale", [0.01, 1.0, 100.0])
def test_auto(trace: Any, spiky: Any, total: Any, scale: float) -> None:
    got = trace(Auto(), spiky * scale)
    np.testing.assert_allclose(got.thresholds, auto_reference(total(spiky * scale)), rtol=RTOL)
    assert (got.coefs[[120, 123, 203, 204]] < 0.6).all()


def test_auto_leaves_the_usual_step_of_a_small_norm_alone(trace: Any, calm: Any) -> None:
    got = trace(Auto(), calm * 0.1)
    assert (got.coefs < 1).any(axis=1).mean() < 0.05


@pytest.mark.parametrize(("sigma", "times"), [(0.0, 1.25), (2.0, 4.0)])
def test_auto_stays_within_its_distance_from_the_level(
    trace: Any, sigma: float, times: float
) -> None:
    norms = 1e-3 * np.exp(np.random.default_rng(0).normal(0, sigma, (100, 1)))
    level = np.exp(np.median(np.log(norms[:99])))
    assert trace(Auto(), norms).thresholds[-1] == pytest.approx(times * level, rel=RTOL)


def test_auto_is_safe_from_the_first_step(trace: Any) -> None:
    exploding = np.exp(np.linspace(5, 60, 200))[:, None]
    got = trace(Auto(), exploding)
    assert (got.thresholds[:20] == 1.0).all()
    highest = 0.2 * 10 * np.exp(np.median(np.log(exploding[:20])))
    assert got.thresholds.max() == pytest.approx(highest, rel=RTOL)


def test_auto_follows_a_falling_norm_and_not_a_diverging_one(
    trace: Any, calm: Any, total: Any
) -> None:
    falling = trace(Auto(), calm * np.geomspace(1, 1e-4, 240)[:, None])
    assert falling.thresholds[-1] < 1e-2
    rows = calm * np.geomspace(1, 1e4, 240)[:, None]
    diverging, norms = trace(Auto(), rows), total(rows)
    highest = 0.2 * np.exp(np.median(np.log(norms[:128])))
    assert diverging.thresholds[-1] == pytest.approx(highest, rel=RTOL)
    assert highest < norms[-1] / 1000


@pytest.mark.parametrize(("shape", "halfway"), [("exp", np.sqrt(10.0)), ("linear", 5.5)])
def test_norm_schedule(trace: Any, calm: Any, shape: str, halfway: float) -> None:
    got = trace(NormSchedule(10.0, to=1.0, over=100, wait=20, shape=shape), calm)
    np.testing.assert_allclose(
        got.thresholds[[0, 20, 70, 120, 239]], [10, 10, halfway, 1, 1], rtol=1e-14
    )
