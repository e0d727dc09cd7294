"""What the ladder decides from readings alone."""

from __future__ import annotations

import math

import numpy as np
import pytest

from steadygrad.errors import SpecError, UsageError
from steadygrad.recovery import Act, Judge, Reading, parse_ladder
from steadygrad.recovery.ring import Ring, SnapshotPace

BROKEN = Reading(0, 1.0, math.nan, gradients_finite=False)


def settled(spec: str = "auto", steps: int = 100) -> Judge:
    judge = Judge(parse_ladder(spec))
    draws = np.random.default_rng(0)
    for step in range(steps):
        sound = Reading(step, 2.0 + 0.1 * draws.normal(), math.exp(0.2 * draws.normal()))
        assert judge.judge(sound).act is Act.NONE
    return judge


@pytest.mark.parametrize(
    "spec", ["auto", "palm", "skip:2+rollback:4,back=50", "skip:3+spike:olmo,sigma=5.0"]
)
def test_a_ladder_is_read_back_from_its_spec(spec: str) -> None:
    ladder = parse_ladder(spec)
    assert parse_ladder(ladder.spec()) == ladder


@pytest.mark.parametrize(
    "spec", ["jump", "skip:often", "skip:1,pace=2", "shrink:3", "auto+lower_lr:0"]
)
def test_a_wrong_spec_is_refused(spec: str) -> None:
    with pytest.raises((SpecError, UsageError), match="recover"):
        parse_ladder(spec)


@pytest.mark.parametrize("spec", ["auto", "skip:2+rollback:8+spike:olmo"])
def test_spikes_of_loss_and_of_norm_are_dropped(spec: str) -> None:
    assert settled(spec).judge(Reading(100, 2.0, 500.0)).act is Act.SKIP
    assert settled(spec).judge(Reading(100, 40.0, 1.0)).act is Act.SKIP


def test_what_lasts_is_rolled_back_and_the_budget_ends() -> None:
    judge = settled("skip:1+rollback:1")
    struck = [judge.judge(Reading(step, 90.0, 1.0)).act for step in (100, 101)]
    assert struck == [Act.SKIP, Act.ROLLBACK]
    judge.rolled_back(101, 90)
    assert judge.judge(Reading(102, 2.0, 1.0)).act is Act.NONE
    ends = [judge.judge(BROKEN._replace(step=step)) for step in (103, 104)]
    assert [verdict.act for verdict in ends] == [Act.SKIP, Act.STOP]
    assert "budget" in ends[1].reason


def test_a_second_rollback_goes_further_back_and_slower() -> None:
    judge = settled("rollback:4+lower_lr:0.5,steps=10")
    assert judge.judge(Reading(100, 90.0, 1.0)).until == 100
    judge.rolled_back(100, 95)
    assert judge.judge(Reading(101, 2.0, 1.0)).lr_factor == 1.0
    assert judge.judge(Reading(102, 90.0, 1.0)).until == 94
    judge.rolled_back(102, 80)
    assert judge.judge(Reading(103, 2.0, 1.0)).lr_factor == 0.5
    assert judge.judge(Reading(113, 2.0, 1.0)).lr_factor == 1.0


def test_a_level_that_good_weights_show_as_well_is_the_datas() -> None:
    judge = settled("auto")
    steps = iter(range(100, 200))
    acts: list[Act] = []
    while Act.ACCEPT not in acts and len(acts) < 50:
        step = next(steps)
        verdict = judge.judge(Reading(step, 50.0, 1.0))
        acts.append(verdict.act)
        if verdict.act is Act.ROLLBACK:
            judge.rolled_back(step, 90)
    assert acts.count(Act.ROLLBACK) == 1
    assert acts[-1] is Act.ACCEPT


def test_an_overflow_under_a_scaler_is_not_a_strike() -> None:
    assert settled().judge(Reading(100, 2.0, math.nan)).act is Act.NONE


def test_healthy_curves_are_left_alone() -> None:
    for seed in range(4):
        draws = np.random.default_rng(seed)
        judge = Judge(parse_ladder("auto"))
        for step in range(1500):
            level = 0.2 + 2.5 * math.exp(-step / 200)
            loss = level * math.exp(0.4 * draws.normal())
            norm = level * math.exp(0.5 * draws.normal())
            assert judge.judge(Reading(step, loss, norm)).act is Act.NONE, (seed, step)


@pytest.mark.parametrize(("loss", "norm"), [(2.0, 0.0), (math.nan, 1.0), (math.nan, 0.0)])
def test_steps_without_a_gradient_or_a_known_loss_are_sound(loss: float, norm: float) -> None:
    judge = Judge(parse_ladder("auto"))
    assert {judge.judge(Reading(step, loss, norm)).act for step in range(150)} == {Act.NONE}


def test_broken_batches_are_no_habit_of_spikes() -> None:
    judge = settled()
    for step in range(100, 110, 2):
        judge.judge(Reading(step, math.inf, 1.0, loss_finite=False))
        judge.judge(Reading(step + 1, 2.0, 1.0))
    assert judge.judge(Reading(110, 40.0, 1.0)).act is Act.SKIP


def test_each_further_rollback_lowers_the_rate_of_a_compiled_step_once_more() -> None:
    judge = settled("rollback:8+lower_lr:0.5,steps=50")
    factors = []
    for step in (100, 110, 120):
        judge.rolled_back(step, step - 5)
        factors.append((judge.ahead(step + 1).lr_factor, judge.ahead(step + 1).slow_until))
    assert factors == [(1.0, -1), (0.5, 160), (0.25, 170)]


def test_a_ring_refuses_what_does_not_fit() -> None:
    with pytest.raises(UsageError, match="keep=1"):
        Ring[str](3, 100).require_room(50)


def test_the_pace_follows_the_cost() -> None:
    pace = SnapshotPace(0)
    for _ in range(5):
        pace.stepped(0.01)
    strides = []
    for step in range(6):
        pace.taken(step, 0.02)
        strides.append(pace.stride)
    assert strides == [40, 160, 200, 200, 200, 200]
