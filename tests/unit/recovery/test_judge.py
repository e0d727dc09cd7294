"""What the ladder decides from readings alone."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from steadygrad.errors import SpecError, UsageError
from steadygrad.recovery import Act, Judge, Reading, parse_ladder
from steadygrad.recovery.memory import half_of_memory
from steadygrad.recovery.ring import Ring, SnapshotPace
from steadygrad.recovery.triggers import Fall

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


def lifted(
    since: int, loss: float, norm: float, regrets: bool | None, spec: str = "auto"
) -> list[str]:
    """What strikes a training whose losses and norms are so many times larger from a step on."""
    judge, draws = Judge(parse_ladder(spec)), np.random.default_rng(0)
    triggers = []
    for step in range(160):
        times = (loss, norm) if step >= since else (1.0, 1.0)
        values = (0.4 * each * math.exp(0.1 * draws.normal()) for each in times)
        verdict = judge.judge(Reading(step, *values), regrets=lambda until, fall: regrets)
        triggers += [verdict.trigger] if verdict.trigger else []
    return triggers


def test_what_a_young_training_has_not_seen_yet_is_no_spike() -> None:
    assert lifted(24, 8.0, 1.0, False) == lifted(24, 1.0, 20.0, False) == []


def test_a_divergence_that_a_replay_denies_is_none() -> None:
    no_spikes = "auto+spike:sigma=40"
    assert lifted(80, 3.0, 16.0, False, no_spikes) == []
    assert set(lifted(80, 3.0, 16.0, None, no_spikes)) == {"sustained divergence"}


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


def fallen_back(regrets: bool | None) -> tuple[list[Act], int]:
    """What is done about a loss that comes down to 1, and then lies at 2.5; how often it asks."""
    judge, asked, acts = Judge(parse_ladder("auto")), [], []
    draws = np.random.default_rng(0)

    def answer(until: int, fall: Fall) -> bool | None:
        asked.append((until, fall.over_start))
        assert 0.9 < fall.lost < 1.6
        return regrets

    for step in range(240):
        loss = (1 + 2 * math.exp(-step / 30) if step < 140 else 2.5) + 0.05 * draws.normal()
        verdict = judge.judge(Reading(step, loss, 1.0), lambda: None, answer)
        acts.append(verdict.act)
        if verdict.act is Act.ROLLBACK:
            assert verdict.until == step - 32
            judge.rolled_back(step, 100)
            judge.slow_down(step + 1, 16.0)
            assert judge.ahead(step + 1).lr_factor == 0.5**4
            break
    assert not any(over_start for _, over_start in asked)
    return acts, len(asked)


@pytest.mark.parametrize(("regrets", "asks"), [(False, 8), (None, 8), (True, 4)])
def test_a_loss_that_falls_back_is_the_weights_fault_only_where_earlier_ones_do_better(
    regrets: bool | None, asks: int
) -> None:
    acts, asked = fallen_back(regrets)
    assert acts.count(Act.ROLLBACK) == (regrets is True)
    assert set(acts) <= {Act.NONE, Act.ROLLBACK}
    assert asked == asks  # a level that is the data's is asked about no longer


def test_a_loss_that_lies_over_its_start_asks_what_the_first_weights_would_have_done() -> None:
    judge = Judge(parse_ladder("auto"))
    falls: list[Fall] = []

    def answer(until: int, fall: Fall) -> bool:
        falls.append(fall)
        return True

    losses = [1.0, *([70.0, 6.0, 100.0] * 20)]  # the second step spoils the level of the first few
    readings = [Reading(step, loss, 5.0) for step, loss in enumerate(losses)]
    acts = [judge.judge(reading, lambda: None, answer).act for reading in readings[:20]]
    assert acts[-1] is Act.ROLLBACK
    assert all(fall.over_start for fall in falls)


@pytest.mark.parametrize(
    ("gone", "rate", "factor"), [(3.0, 0.2, 1 / 32), (3.0, 1.0, 1.0), (1.9, 1.0, 1.0)]
)
def test_a_rate_that_is_too_hot_from_the_start_is_lowered_and_stays_so_where_that_pays(
    gone: float, rate: float, factor: float
) -> None:
    judge, asked = Judge(parse_ladder("auto")), []

    def far() -> float:
        asked.append(gone)
        return gone

    draws, acts, lowered = np.random.default_rng(0), [], 1.0
    for step in range(400):
        loss = (5.0 if lowered == 1.0 else 5.0 * rate) + 0.1 * draws.normal()
        verdict = judge.judge(Reading(step, loss, 1.0), gone=far)
        lowered = verdict.lr_factor
        acts += [(step, verdict.act, verdict.trigger, verdict.until)] if verdict.trigger else []
        if verdict.act is Act.ROLLBACK:
            judge.rolled_back(step, 0)
            judge.slow_down(step + 1, judge.too_far)
            lowered = judge.ahead(step + 1).lr_factor
            assert lowered == 1 / 32
    assert acts == ([(31, Act.ROLLBACK, "too hot from the start", -1)] if gone > 2 else [])
    assert asked == [gone]
    assert lowered == factor


def test_a_batch_that_is_broken_beyond_all_measure_is_never_a_habit() -> None:
    judge = settled()
    for step in range(100, 200, 5):
        assert judge.judge(Reading(step, 2.0, 5000.0)).act is Act.SKIP
        for after in range(1, 5):
            assert judge.judge(Reading(step + after, 2.0, 1.0)).act is Act.NONE


@pytest.mark.parametrize(
    ("groups", "limits", "most"),
    [
        (
            "0::/a/b",
            {"sys/fs/cgroup/a/memory.max": "4096\n", "sys/fs/cgroup/a/b/memory.max": "max"},
            2048,
        ),
        ("0::/", {"sys/fs/cgroup/memory.max": "2000"}, 1000),
        ("5:cpu,memory:/x\n0::/", {"sys/fs/cgroup/memory/memory.limit_in_bytes": "600"}, 300),
    ],
)
def test_a_container_is_given_half_of_what_it_may_use(
    tmp_path: Path, groups: str, limits: dict[str, str], most: int
) -> None:
    for name, text in {"proc/self/cgroup": groups, **limits}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert half_of_memory(tmp_path) == most
    assert half_of_memory(tmp_path / "none") > 2**20


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
    assert strides == [40, 160, 267, 267, 267, 267]  # 0.02 s are 0.75 % of 267 steps
