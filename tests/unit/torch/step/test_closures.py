"""Optimizers that take a closure: what is clipped are the gradients made inside it."""

from __future__ import annotations

import math

import pytest
import torch

import steadygrad.torch as sg
from steadygrad.errors import NoGradientsWarning, NonFiniteError


def adam(model):
    return torch.optim.Adam(model.parameters(), lr=0.1)


def lbfgs(model):
    return torch.optim.LBFGS(model.parameters(), max_iter=5, lr=0.5)


def test_the_first_step_with_a_closure_is_clipped_already(training):
    """Lightning always passes one, and the gradients do not exist before it runs."""
    t, by_hand = training(adam), training(adam)
    steady = sg.attach(t.optimizer, clip="norm:0.1")
    for _ in range(2):
        loss = t.optimizer.step(closure=t.closure())
        expected = by_hand.backward()
        norm = by_hand.norm()
        sg.clip_grad_norm_(by_hand.model.parameters(), 0.1)
        by_hand.optimizer.step()
        assert loss.item() == expected.item()
        assert steady.last.norm == pytest.approx(norm, rel=1e-12)
        assert steady.last.loss == pytest.approx(expected.item())
    assert t.same_as(by_hand)


def test_a_closure_runs_with_gradients_enabled_and_once(training):
    t = training(adam)
    sg.attach(t.optimizer, clip="norm:0.1")
    calls = []

    def closure():
        calls.append(torch.is_grad_enabled())
        return t.backward()

    with torch.no_grad():
        t.optimizer.step(closure)
    assert calls == [True]


def test_every_evaluation_of_a_search_is_clipped(training):
    t, by_hand = training(lbfgs), training(lbfgs)
    steady = sg.attach(t.optimizer, clip="norm:0.1")

    def clipped():
        loss = by_hand.backward()
        sg.clip_grad_norm_(by_hand.model.parameters(), 0.1)
        return loss

    for _ in range(2):
        ours = t.optimizer.step(t.closure())
        theirs = by_hand.optimizer.step(clipped)
        assert ours.item() == theirs.item()
    assert t.same_as(by_hand)
    assert (steady.steps, steady.last.action) == (2, "clip")


def test_a_loss_that_a_closure_returns_beside_its_outputs_is_the_one_on_record(training):
    class Beside(torch.optim.SGD):
        def step(self, closure):
            with torch.enable_grad():
                values = closure()
            super().step()
            return values

    t = training(lambda m: Beside(m.parameters(), lr=0.1))
    steady, evaluate = sg.attach(t.optimizer), t.closure()
    loss, outputs = t.optimizer.step(lambda: (evaluate(), torch.zeros(5)))
    assert steady.last.loss == pytest.approx(loss.item())
    assert loss.grad_fn is not None
    assert outputs.shape == (5,)


class CallsBackward(torch.optim.SGD):
    """Takes a closure of the loss alone, as line searches do, and calls backward itself."""

    def step(self, closure):
        with torch.enable_grad():
            loss = closure()
        self.zero_grad()
        loss.backward()
        super().step()
        return loss


def test_a_step_that_calls_backward_after_its_closure_is_told_of_and_left_alone(training):
    t, plain = (training(lambda m: CallsBackward(m.parameters(), lr=0.1)) for _ in range(2))
    sg.attach(t.optimizer, clip="norm:0.01")

    def both_step(factor):
        for each in (t, plain):
            each.optimizer.step(lambda each=each: each.loss() * factor)

    with pytest.warns(NoGradientsWarning, match=r"Let the closure call backward\(\)"):
        both_step(1.0)
    both_step(math.nan)
    both_step(1.0)  # would be skipped for the NaN of the step before
    assert t.same_as(plain)


def wolfe(model):
    return torch.optim.LBFGS(model.parameters(), line_search_fn="strong_wolfe")


@pytest.mark.parametrize("make", [lbfgs, wolfe])
@pytest.mark.parametrize("broken", [0, 1, 3])
def test_a_search_that_breaks_anywhere_leaves_nothing(training, broken, make):
    t = training(make)
    steady = sg.attach(t.optimizer, clip="autoclip:50")
    t.optimizer.step(t.closure())
    before, memory = t.everything(), steady.state_dict()["state"]
    t.optimizer.step(t.closure([1.0] * broken + [math.nan]))
    assert t.same_as(before)
    assert steady.last.action == "skip"
    after = steady.state_dict()["state"]
    assert all(torch.equal(after[key], memory[key]) for key in memory)


def test_raise_inside_a_search_comes_out_and_leaves_nothing(training):
    t = training(lbfgs)
    sg.attach(t.optimizer, clip="norm:1.0", on_nonfinite="raise")
    t.optimizer.step(t.closure())
    before = t.everything()
    with pytest.raises(NonFiniteError, match="step 1"):
        t.optimizer.step(t.closure([1.0, 1.0, math.nan]))
    assert t.same_as(before)


class Twice(torch.optim.SGD):
    """Evaluates its closure twice, as sharpness-aware methods do; unknown to torch."""

    @torch.no_grad()
    def step(self, closure=None):
        loss = None
        for _ in range(2):
            with torch.enable_grad():
                loss = closure()
            for group in self.param_groups:
                for p in group["params"]:
                    p.sub_(p.grad, alpha=group["lr"])
        return loss


def twice(model):
    return Twice(model.parameters(), lr=0.1)


def test_an_unknown_optimizer_may_evaluate_more_than_once(training):
    t, plain = training(twice), training(twice)
    sg.attach(t.optimizer, clip="none")
    for _ in range(3):
        assert t.optimizer.step(t.closure()).item() == plain.optimizer.step(plain.closure()).item()
    assert t.same_as(plain)


@pytest.mark.parametrize("broken", [0, 1])
def test_a_broken_evaluation_of_an_unknown_optimizer_leaves_nothing(training, broken):
    t = training(twice)
    steady = sg.attach(t.optimizer)
    t.optimizer.step(t.closure())
    before = t.everything()
    t.optimizer.step(t.closure([1.0] * broken + [math.nan]))
    assert t.same_as(before)
    assert (steady.last.action, steady.steps) == ("skip", 2)
    t.optimizer.step(t.closure())
    assert not t.same_as(before)


def test_an_error_in_a_closure_comes_out_as_it_is(training):
    t = training(lbfgs)
    steady = sg.attach(t.optimizer)

    def closure():
        raise OSError("data")

    with pytest.raises(OSError, match="data"):
        t.optimizer.step(closure)
    t.optimizer.step(t.closure())
    assert steady.steps == 1
