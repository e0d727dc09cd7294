"""SG801 and SG802: a rank that holds the others up, and one that brings NaN."""

from __future__ import annotations

import numpy as np
import pytest

from steadygrad.runlog import Event

STEPS, RANKS = 60, 4


def told(m, **figures):
    """Have four ranks tell of every step; figures are ``[steps, ranks]``."""
    rng = np.random.default_rng(1)
    shape = (STEPS, RANKS)
    rows = {
        "rank": np.tile(np.arange(RANKS), STEPS).reshape(shape),
        "step": np.repeat(np.arange(STEPS), RANKS).reshape(shape),
        "loss": np.exp(rng.normal(0, 0.1, shape)),
        "loss_known": np.ones(shape),
        "nonfinite": np.zeros(shape),
        "seconds": np.full(shape, 0.1),
        "norm": np.ones(shape),
        "own_norm": np.ones(shape),
        "busy": 0.02 * np.exp(rng.normal(0, 0.4, shape)),  # loaders are uneven everywhere
        **figures,
    }
    for part in np.array_split(np.arange(STEPS), 5):  # as they arrive: several steps at a time
        data = {name: column[part].ravel().tolist() for name, column in rows.items()}
        m.events.append(Event(None, 0.0, "ranks", {**data, "optimizer": 0}))
    return rows


def of_ranks(m):
    return [f for f in m.findings if f.id.startswith("SG8")]


def test_sound_ranks_are_silent(make):
    m = make(steps=STEPS)
    told(m)
    assert of_ranks(m) == []


def test_a_rank_that_the_others_wait_for_is_named(make):
    m = make(steps=STEPS)
    busy = told(make(steps=STEPS))["busy"].copy()
    busy[:, 2] += 0.05
    told(m, busy=busy)
    (found,) = of_ranks(m)
    assert (found.id, found.severity) == ("SG801", "warning")
    assert found.figures == (("rank", 2.0), ("share", pytest.approx(0.5, abs=0.05)))
    assert "Rank 2" in found.title


@pytest.mark.parametrize("kind", ["now and then", "all alike", "little", "few steps"])
def test_waiting_that_is_nobodys_fault_is_not_told(make, kind):
    m = make(steps=STEPS)
    busy = told(make(steps=STEPS))["busy"].copy()
    if kind == "now and then":
        busy[:, 2] = np.where(np.arange(STEPS) % 5 < 3, 0.08, 0.001)
    elif kind == "all alike":
        busy += 0.07
    elif kind == "little":
        busy = busy / 100 + np.array([0.003, 0, 0, 0])  # what recording may cost
    else:
        busy[:, 2] += 0.05
        busy[15:] = np.nan
    told(m, busy=busy, seconds=np.full(busy.shape, 0.004 if kind == "little" else 0.1))
    assert of_ranks(m) == []


@pytest.mark.parametrize("skipped", [False, True])
def test_the_rank_whose_loss_broke_first_is_named(make, skipped):
    m = make(steps=STEPS)
    loss = np.ones((STEPS, RANKS))
    loss[40, 3] = np.nan
    nonfinite = np.zeros((STEPS, RANKS))
    nonfinite[40] = 7  # averaged: broken everywhere
    m.break_from(40, 41)
    if skipped:
        m.columns["action"] = np.where(np.arange(STEPS) == 40, "skip", "none")
    else:
        loss[41:] = np.nan  # weights are gone: every rank's loss is
        m.break_from(41)
    told(m, loss=loss, nonfinite=nonfinite)
    (found,) = of_ranks(m)
    assert (found.id, found.severity) == ("SG802", "warning" if skipped else "error")
    assert found.steps == (40,)
    assert found.title.startswith("Rank 3 alone brings NaN or inf into step 40: its loss is not")


def test_gradients_that_are_a_ranks_own_tell_it_too(make):
    m = make(steps=STEPS)
    nonfinite = np.zeros((STEPS, RANKS))
    nonfinite[[10, 20], 1] = 2
    told(m, nonfinite=nonfinite, loss_known=np.zeros((STEPS, RANKS)))
    (found,) = of_ranks(m)
    assert "Rank 1 alone" in found.title
    assert found.steps == (10, 20)


def test_who_holds_a_piece_of_summed_gradients_has_not_brought_what_is_in_it(make):
    m = make(steps=STEPS)
    nonfinite = np.zeros((STEPS, RANKS))
    nonfinite[[10, 20], 1] = 2
    told(m, nonfinite=nonfinite, own_norm=np.full((STEPS, RANKS), 0.5))
    assert of_ranks(m) == []


@pytest.mark.parametrize("kind", ["all at once", "nobody told a loss", "damaged"])
def test_what_no_rank_can_be_blamed_for_is_not_told(make, kind):
    m = make(steps=STEPS)
    loss = np.ones((STEPS, RANKS))
    loss[30:, :] = np.nan
    if kind == "nobody told a loss":
        loss[:, 1:] = 1.0
        told(m, loss=loss, loss_known=np.zeros(loss.shape))
    else:
        told(m, loss=loss)
    if kind == "damaged":
        for event in m.events:
            event.data["rank"] = event.data["rank"][1:]
    assert of_ranks(m) == []
