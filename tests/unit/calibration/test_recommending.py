"""Thresholds and their evidence, on norms whose right answer is known."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from steadygrad.calibration import calibrate, estimate, replay
from steadygrad.calibration.show import show
from steadygrad.errors import CalibrationError, UsageError
from steadygrad.policies import parse
from steadygrad.runlog import Run
from steadygrad.text import percent

SIGMA = 0.2


def run_of(norms: Any, **columns: Any) -> Run:
    info = columns.pop("info", {})
    steps = {"norm": norms, "step": np.arange(len(norms)), **columns}
    return Run.from_arrays(steps=steps, info=info)


def log_normal(steps: int = 600, seed: int = 0) -> Any:
    return 3.0 * np.exp(np.random.default_rng(seed).normal(0, SIGMA, steps))


@pytest.fixture
def spiky() -> Any:
    norms = log_normal()
    norms[[150, 151, 400]] = [60.0, 90.0, 500.0]
    return norms


def test_the_threshold_stands_between_median_and_spikes(spiky: Any) -> None:
    c = calibrate(run_of(spiky))
    right = 3.0 * np.exp(3 * SIGMA)
    # the error of a quartile of 570 normal deviates is 0.06 sigma; times 3 * 1.48, twice
    assert c.threshold == pytest.approx(right, rel=0.13)
    assert c.median < c.interval[0] <= c.threshold <= c.interval[1] < 60.0
    assert c.interval[0] <= right <= c.interval[1]
    assert [s.step for s in c.spikes] == [150, 151, 400]
    assert [s.norm for s in c.spikes] == [60.0, 90.0, 500.0]
    assert c.clip_rate == (spiky[30:] > c.threshold).mean()
    assert (c.needed, c.stationary, c.trend, c.peak) == (True, True, "flat", 500.0)
    assert parse(c.spec) == parse(f"norm:{c.threshold}")
    assert "3 spikes" in c.advice[0]


def test_the_curve_and_the_defaults_count_what_they_say(spiky: Any) -> None:
    c = calibrate(run_of(spiky))
    used = spiky[30:]
    assert all(rate == pytest.approx((used > t).mean(), abs=1e-12) for t, rate in c.curve)
    assert c.curve[0][1] == 1.0
    assert c.curve[-1][1] == 0.0
    rates = {o.max_norm: o.clip_rate for o in c.defaults}
    assert rates == {t: pytest.approx((used > t).mean()) for t in (0.5, 1.0, 5.0)}
    assert c.defaults[0].verdict == "clips nearly always"
    assert c.defaults[0].coef == pytest.approx(np.median(0.5 / used[used > 0.5]))
    assert c.percentiles["90"] == pytest.approx(np.percentile(used, 90))


def test_a_calm_run_needs_no_clipping() -> None:
    c = calibrate(run_of(log_normal()))
    assert not c.needed
    assert c.spikes == ()
    assert c.advice[0].startswith("Nothing in this run called for clipping")
    clipped = calibrate(run_of(log_normal(), coef=np.full(600, 0.5)))
    assert not clipped.needed
    assert clipped.advice[0].startswith("With 100 % of its steps clipped, this run has no spikes")
    rising = calibrate(run_of(log_normal() * np.geomspace(1, 8.0, 600)))
    assert not rising.needed
    assert rising.advice[0].startswith("The norm rises ")


@pytest.mark.parametrize(("factor", "trend"), [(1 / 8, "falling"), (8.0, "rising")])
def test_a_moving_norm_gets_an_adaptive_method(factor: float, trend: str) -> None:
    norms = log_normal() * np.geomspace(1, factor, 600)
    norms[300] *= 20
    c = calibrate(run_of(norms))
    assert (c.stationary, c.trend, c.spec) == (False, trend, "auto")
    assert c.drift == pytest.approx(factor, rel=0.15)
    assert [s.step for s in c.spikes] == [300]
    schedule = next(w for w in " ".join(c.advice).split() if w.startswith("norm-schedule:"))
    assert (parse(schedule.rstrip(";,")).to > parse(schedule.rstrip(";,")).max_norm) == (factor > 1)


def test_noise_is_no_trend() -> None:
    moving = [not calibrate(run_of(log_normal(300, seed))).stationary for seed in range(20)]
    assert sum(moving) <= 1


def test_wild_noise_is_no_trend_nor_is_a_small_one() -> None:
    wild = [log_normal(60, seed) ** 8 for seed in range(20)]
    assert sum(not calibrate(run_of(norms)).stationary for norms in wild) <= 1
    assert calibrate(run_of(log_normal() * np.geomspace(1, 1.3, 600))).stationary


def test_a_run_that_diverges_is_judged_by_its_sound_part(spiky: Any) -> None:
    end = np.concatenate([np.exp(np.linspace(1, 200, 150)), np.full(50, np.nan)])
    c = calibrate(run_of(np.concatenate([spiky, end])))
    sound = calibrate(run_of(spiky))
    assert c.threshold == pytest.approx(sound.threshold, rel=0.1)
    assert 600 <= c.diverged_at <= 610
    assert c.nonfinite == 50
    assert c.needed
    assert any("NaN or inf" in sentence for sentence in c.advice)


def test_a_run_that_was_clipped_is_read_before_clipping(spiky: Any) -> None:
    coef = np.minimum(1, 1.0 / spiky)
    clipped = calibrate(run_of(spiky, coef=coef, action=np.where(coef < 1, "clip", "none")))
    assert clipped.threshold == calibrate(run_of(spiky)).threshold
    assert any("was itself clipped" in sentence for sentence in clipped.advice)


def test_another_norm_stays_in_the_spec(spiky: Any) -> None:
    c = calibrate(run_of(spiky, info={"policy": "norm:1.0,p=inf"}))
    assert c.norm_type == np.inf
    assert parse(c.spec).norm_type == np.inf


@pytest.mark.parametrize(
    ("norms", "reason"),
    [
        (np.ones(19), "19 usable of 19"),
        (np.full(50, np.nan), "50 with a NaN or inf norm"),
        (np.full(50, np.inf), "50 with a NaN or inf norm"),
        (np.zeros(50), "50 with norm 0"),
        ([], "0 usable of 0"),
    ],
)
def test_too_few_steps_are_refused_with_the_reason(norms: Any, reason: str) -> None:
    with pytest.raises(CalibrationError, match=reason):
        calibrate(run_of(np.asarray(norms, dtype=float)))


@pytest.mark.parametrize("steps", [20, 21, 40])
def test_just_enough_steps_are_enough(steps: int) -> None:
    assert calibrate(run_of(log_normal(steps))).threshold > 0


def test_a_run_that_explodes_at_once_is_refused() -> None:
    norms = np.concatenate([log_normal(12), np.exp(np.linspace(20, 200, 100))])
    with pytest.raises(CalibrationError, match="left their range for good"):
        calibrate(run_of(norms))


def test_one_optimizer_is_chosen(spiky: Any) -> None:
    norms = np.concatenate([spiky, np.ones(50)])
    optimizer = np.repeat([1, 4], [600, 50])
    run = run_of(norms, optimizer=optimizer, info={"optimizers": [{}, {}]})
    assert calibrate(run).optimizer == 1
    assert calibrate(run, optimizer=4).median == 1.0
    with pytest.raises(UsageError, match="no optimizer 2"):
        calibrate(run, optimizer=2)


def test_scale_does_not_matter(spiky: Any) -> None:
    small, large = (calibrate(run_of(spiky * scale)) for scale in (1e-20, 1e20))
    assert small.threshold * 1e40 == pytest.approx(large.threshold, rel=1e-12)


def test_the_interval_covers_and_repeats() -> None:
    right = 3.0 * np.exp(3 * SIGMA)
    inside = 0
    for seed in range(20):
        c = calibrate(run_of(log_normal(400, seed)))
        inside += c.interval[0] <= right <= c.interval[1]
    assert inside >= 15  # 95 % of 20 are 19; fewer than 15 has a chance of 0.03 %
    norms = log_normal()
    assert calibrate(run_of(norms)) == calibrate(run_of(norms))


def test_json_is_strict_and_complete(spiky: Any) -> None:
    told = json.loads(show(run_of(spiky), as_json=True, replays=["zclip", "norm:1.0"]))
    assert {"threshold", "median", "peak", "clip_rate", "interval", "stationary", "advice"} <= (
        told.keys()
    )
    assert told["spikes"][0] == {
        "step": 150,
        "norm": 60.0,
        "factor": pytest.approx(60 / 3, rel=0.1),
    }
    assert [r["spec"] for r in told["replays"]] == ["zclip", "norm:1.0"]
    json.loads(show(run_of(spiky, info={"policy": "norm:1.0,p=inf"}), as_json=True))


def test_text_marks_the_recommendation(spiky: Any) -> None:
    c = calibrate(run_of(spiky))
    text = show(run_of(spiky), replays=["norm:1.0"])
    line = next(line for line in text.splitlines() if "<- recommended" in line)
    assert line.split()[0] == f"{c.threshold:.3g}"
    assert percent(c.clip_rate) in line
    for mark in (0.5, 1.0, 5.0):  # as exact as the sentence above the table
        line = next(line for line in text.splitlines() if line.startswith(f"  {mark:<8.3g} "))
        assert line.split("%")[0].split()[1] == percent((spiky[30:] > mark).mean()).split()[0]
    assert "norm:1.0 would have clipped 100 %" in text


def test_replay_is_the_policy_on_the_recorded_norms(spiky: Any) -> None:
    norms = np.insert(spiky, 200, np.nan)
    got = replay(run_of(norms), "norm:4.0")
    finite = np.isfinite(norms)
    np.testing.assert_array_equal(got.coefs[finite], np.minimum(1, 4.0 / norms[finite]))
    assert got.actions[200] == "skip"
    assert got.clip_rate == (norms > 4.0).mean()
    assert got.sentence.endswith("skipped 1 non-finite, the spike at 401 by a factor of 125")


def test_replay_by_tensor() -> None:
    norms = np.array([[3.0, 4.0], [0.1, 0.1], [30.0, 4.0]])
    run = Run.from_arrays(
        steps={"norm": np.sqrt((norms**2).sum(axis=1))}, tensors=["a", "b"], tensor_norms=norms
    )
    got = replay(run, "tensor-norm:2.0")
    kept = np.minimum(1, 2.0 / norms)
    expected = np.sqrt(((norms * kept) ** 2).sum(axis=1)) / np.sqrt((norms**2).sum(axis=1))
    np.testing.assert_allclose(got.coefs, expected, rtol=1e-15)
    assert got.actions.tolist() == ["clip", "none", "clip"]
    grouped = replay(run, parse("{a: norm:2.0, *: none}"))
    assert grouped.coefs[2] == pytest.approx(np.hypot(2.0, 4.0) / np.hypot(30.0, 4.0))


def test_replay_says_what_it_cannot_know() -> None:
    run = run_of(np.full(30, 5.0))
    value = replay(run, "value:1.0")
    assert np.isnan(value.coefs).all()
    assert value.clip_rate == 1.0
    with pytest.raises(UsageError, match="3-norm"):
        replay(run, "norm:1.0,p=3")


def test_replay_skips_spikes(spiky: Any) -> None:
    got = replay(run_of(spiky), "skip+norm:5.0")
    assert np.flatnonzero(got.actions == "skip").tolist() == [150, 151, 400]
    assert "skipped 3 spikes" in got.sentence


def test_a_training_that_fails_is_no_guide_upwards(spiky: Any) -> None:
    small = 0.3 * spiky  # 1 stands over most of them
    good, bad = (calibrate(run_of(small, loss=np.linspace(2, end, 600))) for end in (1, 30))
    assert good.threshold > 1.0
    assert bad.threshold == 1.0
    assert bad.needed
    assert any("The loss rose from 2.68 to 29.3" in sentence for sentence in bad.advice)


def relapsed(turn: int = 60, steps: int = 300) -> tuple[Any, Any]:
    """Norms and losses of a run that learns, throws it all away and stays there."""
    generator = np.random.default_rng(2)
    loss = np.r_[np.linspace(2.3, 1.2, turn), np.full(steps - turn, 2.25)]
    norms = np.r_[0.4 * np.exp(generator.normal(0, SIGMA, turn)), np.full(steps - turn, 6.0)]
    return norms, loss + generator.normal(0, 0.03, steps)


def test_a_training_that_falls_back_is_judged_by_its_calm_part() -> None:
    norms, loss = relapsed()
    c = calibrate(run_of(norms, loss=loss))
    # the window of 5 that is lowest may end a few steps before the turn
    assert 55 <= c.steps <= 60
    assert c.threshold == pytest.approx(np.median(norms[: c.steps]), rel=0.05)  # two digits
    assert c.needed
    assert any("was back at 2.2" in sentence for sentence in c.advice)
    without = calibrate(run_of(norms))
    assert without.threshold > 6.0


def test_the_calm_part_of_a_failed_training_allows_1_at_most() -> None:
    norms, loss = relapsed()
    assert calibrate(run_of(10 * norms, loss=loss)).threshold == 1.0
    with pytest.raises(CalibrationError, match=r"was back at 2\.2.*calibrate that"):
        calibrate(run_of(100 * norms, loss=loss))  # 1 would clip every step


def test_a_loss_that_is_only_noisy_is_no_setback() -> None:
    generator = np.random.default_rng(3)
    found = 0
    for _ in range(100):
        loss = 2.3 + generator.normal(0, 0.1, 300)
        found += estimate.setback(loss) is not None
    assert found <= 3
    falling = np.linspace(2.3, 0.2, 300) + generator.normal(0, 0.1, 300)
    assert estimate.setback(falling) is None


@pytest.mark.parametrize(("after", "told"), [(-3.0, False), (0.3, False), (9.0, True)])
def test_a_policys_loss_may_come_back_to_0(after: float, told: bool) -> None:
    loss = np.concatenate([np.linspace(0.2, -7.0, 40), np.full(60, after)])
    assert (estimate.setback(loss) is not None) is told


def test_a_setback_that_ends_in_nan_is_one() -> None:
    _, loss = relapsed()
    loss[90:] = np.nan
    found = estimate.setback(loss)
    assert found is not None
    assert 55 <= found.place <= 60


def test_a_nan_out_of_the_blue_is_no_setback() -> None:
    norms, loss = relapsed()
    norms[60:], loss[60:] = np.nan, np.nan
    assert estimate.setback(loss) is None
    c = calibrate(run_of(norms, loss=loss))
    assert c.clip_rate < 0.1  # it is no reason to clip what came before it
    assert any("cannot undo one that an operation has made" in said for said in c.advice)


@pytest.mark.parametrize("turn", [200, 9_000, 150_000])
def test_a_setback_of_a_long_run_is_found_where_it_was(turn: int) -> None:
    steps = 200_000
    loss = np.concatenate([np.linspace(2.3, 1.2, turn), np.full(steps - turn, 2.2)])
    loss += 0.02 * np.random.default_rng(turn).standard_normal(steps)
    found = estimate.setback(loss)
    assert found is not None
    assert found.place == pytest.approx(turn, abs=0.02 * turn + 5)
    assert found.after == pytest.approx(2.2, abs=0.3)  # from just before the turn on


def test_a_long_run_is_asked_at_a_bounded_number_of_places(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    medians = 0
    real = np.median

    def counted(values: Any, *rest: Any, **options: Any) -> Any:
        nonlocal medians
        medians += 1
        assert values.ndim == 2 or values.size <= estimate.MEDIAN_OF
        return real(values, *rest, **options)

    monkeypatch.setattr(np, "median", counted)
    assert estimate.setback(2 - np.arange(100_000) / 100_000) is None
    assert medians <= estimate.SETBACK_PLACES + 1


def test_a_run_that_is_no_guide_gives_no_threshold_and_says_which_would() -> None:
    noise = np.exp(np.random.default_rng(5).normal(0, 0.1, 400))
    cases = {
        "exploded": (1e9 * noise, np.full(400, 5.0)),
        "fell": (noise * np.geomspace(1.0, 1e-7, 400), None),
        "began at": (noise * np.r_[np.geomspace(1.0, 1e-7, 15), np.full(385, 1e-7)], None),
        "the loss rose": (40.0 * noise, np.linspace(17.0, 34.0, 400)),
    }
    for reason, (norms, loss) in cases.items():
        with pytest.raises(CalibrationError, match=reason) as told:
            calibrate(run_of(norms) if loss is None else run_of(norms, loss=loss))
        assert "calibrate that" in str(told.value)


def test_a_score_that_rises_is_no_loss_that_rose() -> None:
    norms = 40.0 * np.exp(np.random.default_rng(5).normal(0, 0.1, 400))
    score = np.linspace(-1.0, 20.0, 400)
    assert calibrate(run_of(norms, loss=score)).threshold > 40.0
    noisy = 2.0 + np.random.default_rng(6).normal(0, 0.3, 400)
    assert calibrate(run_of(norms, loss=noisy)).threshold > 40.0


def test_json_tells_each_optimizer_by_itself(spiky: Any) -> None:
    three = np.tile([0, 1, 2], len(spiky))
    norms = np.where(three == 2, np.nan, np.repeat(spiky, 3) * np.where(three == 1, 100.0, 1.0))
    run = Run.from_arrays(steps={"norm": norms, "optimizer": three})
    told = json.loads(show(run, as_json=True))
    first, second, broken = told["optimizers"]
    assert told["threshold"] == first["threshold"]
    assert second["threshold"] == pytest.approx(100 * first["threshold"], rel=0.1)
    assert (broken["optimizer"], "too few steps" in broken["refused"]) == (2, True)
    one = json.loads(show(run, optimizer=1, as_json=True))
    assert one == second


@pytest.mark.parametrize(("rival", "needed"), [(True, False), (False, True)])
def test_a_loss_that_an_adversary_takes_back_is_no_training_that_failed(rival, needed):
    wave = np.sin(np.linspace(0, 12, 600))
    losses = np.stack([1 + 0.4 * wave, 2 - 0.4 * wave if rival else 2 + 0.4 * wave], axis=1)
    run = run_of(
        np.repeat(log_normal(), 2), loss=losses.ravel(), optimizer=np.tile([0, 1], 600),
        step=np.repeat(np.arange(600), 2),
    )  # fmt: skip
    assert calibrate(run, optimizer=0).needed == needed
