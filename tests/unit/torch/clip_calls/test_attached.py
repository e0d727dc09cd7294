"""The script's own clip calls beside `attach`: the norm before them, or a word that it is after."""

from __future__ import annotations

import inspect
import math
import warnings

import numpy as np
import pytest
import torch
from torch.nn.utils import clip_grad_norm_, clip_grad_value_, clip_grads_with_norm_, get_total_norm

import steadygrad
import steadygrad.torch as sg
from steadygrad.errors import CalibrationError, ClippedTwiceWarning
from steadygrad.torch.step.snapshot import same_bits


def by_norm(t):
    clip_grad_norm_(t.model.parameters(), 0.05)


def by_value(t):
    clip_grad_value_(t.model.parameters(), 0.01)


def by_given_norm(t):
    parameters = list(t.model.parameters())
    clip_grads_with_norm_(parameters, 0.05, get_total_norm([p.grad for p in parameters]))


def by_ours(t):
    sg.clip_grad_norm_(t.model.parameters(), 0.05)


def by_our_value(t):
    sg.clip_grad_value_(t.model.parameters(), 0.01)


def scaled_and_unscaled(t, scaler):
    scaler.unscale_(t.optimizer)
    by_norm(t)


def scaled(t, scaler):
    clip_grad_norm_(t.model.parameters(), 0.05 * scaler.get_scale())


def adam(model):
    return torch.optim.AdamW(model.parameters(), lr=0.1)


def train(training, clip, path=None, scaled=False, steps=4, policy=None):
    """The training, its norms before the clip, and its coefficients."""
    t = training(adam)
    steady = sg.attach(t.optimizer, policy, t.model, run=path) if policy else None
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**7) if scaled else None
    norms, coefs = [], []
    for step in range(steps):
        t.optimizer.zero_grad()
        loss = t.loss(math.inf if scaler and step == 1 else 1.0)
        (scaler.scale(loss) if scaler else loss).backward()
        before = t.norm()
        clip(t, scaler) if scaler else clip(t)
        norm = before / scaler.get_scale() if scaler else before
        norms.append(norm if math.isfinite(norm) else math.nan)
        coefs.append(t.norm() / before)
        scaler.step(t.optimizer) if scaler else t.optimizer.step()
        if scaler:
            scaler.update()
    if steady is not None:
        steady.detach()
    return t, norms, coefs


EVERY = [by_norm, by_value, by_given_norm, by_ours, by_our_value, scaled_and_unscaled, scaled]


@pytest.mark.parametrize("clip", EVERY)
def test_without_a_policy_the_norm_is_the_one_before_them(training, clip, tmp_path):
    with_scaler = clip in (scaled, scaled_and_unscaled)
    plain, norms, coefs = train(training, clip, scaled=with_scaler)
    t, *_ = train(training, clip, tmp_path / "run.db", with_scaler, policy="none")
    assert same_bits(t.everything(), plain.everything())
    run = steadygrad.open_run(tmp_path / "run.db")
    np.testing.assert_allclose(run.steps.norm, norms, rtol=1e-6)
    kept = np.isfinite(norms)
    assert (run.steps.action[kept] == "clip").all()
    if not with_scaler:
        np.testing.assert_allclose(run.steps.coef, coefs, rtol=1e-5)
    limit = 0.01 if clip in (by_value, by_our_value) else 0.05
    np.testing.assert_allclose(run.steps.threshold[kept], limit)
    calls = [event.data for event in run.events if event.kind == "script_clip"]
    assert [call["step"] for call in calls] == [0, 1, 2, 3]
    assert {call["backward_since_step"] for call in calls} == {1}
    assert {call["unscaled"] for call in calls} == {clip is not scaled}


def test_calls_for_others_are_no_calls_of_this_one_and_misplaced_ones_are_told(training, tmp_path):
    t, other = training(adam), training(adam)
    with sg.attach(t.optimizer, clip="none", model=t.model, run=tmp_path / "run.db"):
        for _ in range(8):
            other.backward()
            clip_grad_norm_(other.model.parameters(), 0.05)
            other.optimizer.step()
            t.backward()
            clip_grad_norm_([p.grad for p in t.model.parameters()], 0.05)
            t.optimizer.step()
    run = steadygrad.open_run(tmp_path / "run.db")
    calls = [event.data for event in run.events if event.kind == "script_clip"]
    assert [(call["step"], call["on_gradients"]) for call in calls] == [(n, True) for n in range(8)]
    assert "SG410" in {finding.id for finding in steadygrad.diagnose(run)}


def test_torchs_functions_are_as_they_were_after_the_last_handle(training, tmp_path):
    torchs = inspect.unwrap(clip_grad_norm_)
    code = torchs.__code__
    t = training(adam)
    with sg.attach(t.optimizer, clip="none", run=tmp_path / "run.db"):
        assert torchs.__code__ is not code
    assert torchs.__code__ is code


def test_beside_a_policy_it_is_said_once_that_the_norm_is_the_one_after(training, tmp_path):
    with pytest.warns(ClippedTwiceWarning, match=r"clip_grad_norm_\(0.05\).*clip='none'") as told:
        train(training, by_norm, tmp_path / "run.db", steps=40, policy="norm:0.04")
    assert len(told) == 1
    assert told[0].filename == __file__
    run = steadygrad.open_run(tmp_path / "run.db")
    np.testing.assert_allclose(run.steps.norm, 0.05, rtol=1e-4)
    (finding,) = (f for f in steadygrad.diagnose(run) if f.id == "SG409")
    assert "norm:0.04" in finding.title
    with pytest.raises(CalibrationError, match="clip before the attached policy"):
        steadygrad.calibrate(run)


def test_a_call_that_changes_nothing_is_no_second_clip(training, tmp_path):
    def measured(t):
        clip_grad_norm_(t.model.parameters(), math.inf)
        sg.clip_grad_norm_(t.model.parameters(), math.inf)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(training, measured, tmp_path / "run.db", policy="norm:0.04")
    assert "SG409" not in {f.id for f in steadygrad.diagnose(tmp_path / "run.db")}
