"""Mixed precision: a GradScaler before, around and inside the step."""

from __future__ import annotations

import math

import pytest
import torch

import steadygrad.torch as sg

FUSED = lambda m: torch.optim.AdamW(m.parameters(), lr=0.1, fused=True)  # noqa: E731
PLAIN = lambda m: torch.optim.AdamW(m.parameters(), lr=0.1)  # noqa: E731
both = pytest.mark.parametrize("make", [FUSED, PLAIN], ids=["fused", "not-fused"])


def scaled_step(t, scaler, unscale=False, factor=1.0):
    t.optimizer.zero_grad()
    scaler.scale(t.loss(factor)).backward()
    if unscale:
        scaler.unscale_(t.optimizer)
    scaler.step(t.optimizer)
    scaler.update()


def new_scaler(scale=1024.0):
    return torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=1000)


@both
@pytest.mark.parametrize("unscale", [False, True])
def test_the_true_norm_is_clipped_whoever_unscales(training, make, unscale):
    t, by_hand = training(make), training(PLAIN)
    scaler = new_scaler()
    steady = sg.attach(t.optimizer, clip="norm:0.1")
    for _ in range(3):
        by_hand.backward()
        norm = by_hand.norm()
        sg.clip_grad_norm_(by_hand.model.parameters(), 0.1)
        by_hand.optimizer.step()
        scaled_step(t, scaler, unscale)
        assert steady.last.norm == pytest.approx(norm, rel=1e-4)
        assert (steady.last.threshold, steady.last.loss_scale) == (0.1, 1024.0)
        assert steady.last.coef == pytest.approx(0.1 / norm, rel=1e-4)
    for a, b in zip(t.model.parameters(), by_hand.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@both
@pytest.mark.parametrize("clip", ["value:0.01", "tensor-norm:0.05", "agc:0.01"])
def test_other_methods_see_unscaled_gradients_too(training, make, clip):
    scaled, unscaled = training(make), training(PLAIN)
    scaler = new_scaler()
    first = sg.attach(scaled.optimizer, clip=clip)
    second = sg.attach(unscaled.optimizer, clip=clip)
    scaled_step(scaled, scaler)
    unscaled.step()
    assert first.last.action == second.last.action == "clip"
    assert first.last.coef == pytest.approx(second.last.coef, rel=1e-5)
    assert first.last.cosine == pytest.approx(second.last.cosine, rel=1e-5)


@both
@pytest.mark.parametrize("on_nonfinite", ["skip", "raise", "zero", "propagate"])
@pytest.mark.parametrize("unscale", [False, True])
def test_an_overflow_is_recorded_as_a_skip_and_changes_nothing(
    training, make, on_nonfinite, unscale
):
    t = training(make)
    scaler = new_scaler(2.0**15)
    steady = sg.attach(t.optimizer, clip="norm:0.1", on_nonfinite=on_nonfinite)
    scaled_step(t, scaler)
    before = t.everything()
    scaled_step(t, scaler, unscale, factor=math.inf)
    assert t.same_as(before)
    assert scaler.get_scale() == 2.0**14
    assert (steady.last.step, steady.last.action, steady.last.loss_scale) == (1, "skip", 2.0**15)
    assert steady.last.nonfinite > 0
    scaled_step(t, scaler)
    assert (steady.last.step, steady.last.action, steady.last.loss_scale) == (2, "clip", 2.0**14)


@both
def test_an_overflow_in_the_first_step_is_skipped_whole(training, make):
    t, twin = training(make), training(make)
    scaler = new_scaler()
    sg.attach(t.optimizer, clip="norm:0.1")
    before = t.everything()
    scaled_step(t, scaler, factor=math.inf)
    assert t.same_as(before)
    sg.attach(twin.optimizer, clip="norm:0.1")
    twin_scaler = new_scaler(512.0)
    scaled_step(t, scaler)
    scaled_step(twin, twin_scaler)
    assert t.same_as(twin)


@both
def test_observing_a_scaled_training_changes_no_bit(training, make):
    observed, plain = training(make), training(make)
    steady = sg.attach(observed.optimizer, clip="none")
    scalers = [new_scaler(), new_scaler()]
    for factor in (1.0, math.inf, 1.0):
        scaled_step(observed, scalers[0], factor=factor)
        scaled_step(plain, scalers[1], factor=factor)
    assert observed.same_as(plain)
    assert steady.steps == 3
    assert scalers[0].get_scale() == scalers[1].get_scale()


def test_a_disabled_scaler_is_no_scaler(training):
    t = training(PLAIN)
    steady = sg.attach(t.optimizer, clip="norm:0.1")
    scaled_step(t, torch.amp.GradScaler("cpu", enabled=False))
    assert (steady.steps, steady.last.loss_scale, steady.last.action) == (1, 1.0, "clip")


def test_after_the_scaler_an_ordinary_step_is_unscaled_again(training):
    t = training(FUSED)
    steady = sg.attach(t.optimizer, clip="norm:0.1")
    scaled_step(t, new_scaler())
    t.step()
    assert steady.last.loss_scale == 1.0
    assert steady.last.norm == pytest.approx(t.norm() / steady.last.coef, rel=1e-4)
