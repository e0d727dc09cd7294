"""Handing the coefficient to a fused optimizer, exactly where that is right."""

from __future__ import annotations

import copy

import pytest
import torch

import steadygrad.torch as sg
from steadygrad import kernels
from steadygrad.torch.step.folding import Folding

CLASSES = [
    lambda p: torch.optim.Adam(p, lr=0.1, fused=True),
    lambda p: torch.optim.AdamW(p, lr=0.1, fused=True),
    lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, fused=True),
    lambda p: torch.optim.Adagrad(p, lr=0.1, fused=True),
]


@pytest.fixture
def in_place(monkeypatch):
    """Calls of the kernel's `scale_`, which folding saves."""
    calls = []

    def scale_(tensors, coefs):
        calls.append(len(tensors))
        original(tensors, coefs)

    original = kernels.scale_
    monkeypatch.setattr(kernels, "scale_", scale_)
    return calls


@pytest.mark.parametrize("make", CLASSES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_folded_step_is_the_step_of_scaled_gradients(training, make, dtype, in_place):
    folded = training(lambda m: make(m.parameters()), dtype)
    by_hand = training(lambda m: make(m.parameters()), dtype)
    steady = sg.attach(folded.optimizer, clip="norm:0.01")
    for _ in range(3):
        folded.step()
        assert steady.last.action == "clip"
        assert folded.norm() == pytest.approx(0.01, rel=torch.finfo(dtype).eps)
    assert in_place == []
    for _ in range(3):
        by_hand.backward()
        sg.clip_grad_norm_(by_hand.model.parameters(), 0.01)
        by_hand.optimizer.step()
    # grad_scale is rounded to float32 and so is its product: a unit in the last place or two a step
    bound = 8 * torch.finfo(dtype).eps
    for a, b in zip(folded.model.parameters(), by_hand.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=bound, atol=bound)


def test_nothing_is_handed_over_or_written_below_the_threshold(training, in_place):
    observed = training(lambda m: CLASSES[1](m.parameters()))
    plain = training(lambda m: CLASSES[1](m.parameters()))
    sg.attach(observed.optimizer, clip="norm:1e6")
    for _ in range(2):
        observed.step()
        plain.step()
    assert observed.same_as(plain)
    assert in_place == []
    assert not hasattr(observed.optimizer, "grad_scale")


def test_what_stood_there_is_restored_also_after_an_error(training, monkeypatch):
    t = training(lambda m: CLASSES[1](m.parameters()))
    steady = sg.attach(t.optimizer, clip="norm:0.01")
    t.step()
    assert not hasattr(t.optimizer, "grad_scale")
    assert not hasattr(t.optimizer, "found_inf")
    t.optimizer.grad_scale = torch.tensor(4.0)
    t.backward()
    norm = t.norm()
    t.optimizer.step()
    assert t.optimizer.grad_scale == 4.0
    assert steady.last.norm == pytest.approx(norm / 4)
    del t.optimizer.grad_scale
    t.optimizer.param_groups[0]["betas"] = None  # the step raises
    t.backward()
    with pytest.raises(TypeError):
        t.optimizer.step()
    assert hasattr(t.optimizer, "grad_scale")  # torch calls no hook after an error
    steady.detach()
    assert not hasattr(t.optimizer, "grad_scale")


def test_where_it_would_not_be_exact_gradients_are_scaled_in_place(training, in_place):
    def mixed(model):
        groups = [
            {"params": model[0].parameters()},
            {"params": model[2].parameters(), "fused": False},
        ]
        return torch.optim.SGD(groups, lr=0.1, fused=True)

    cases = {
        "float64": (lambda m: CLASSES[1](m.parameters()), torch.float64, "norm:0.01"),
        "mixed groups": (mixed, torch.float32, "norm:0.01"),
        "per tensor": (lambda m: CLASSES[1](m.parameters()), torch.float32, "tensor-norm:0.01"),
        "tiny": (lambda m: CLASSES[2](m.parameters()), torch.float32, "norm:1e-42"),
    }
    for name, (make, dtype, clip) in cases.items():
        t = training(make, dtype)
        steady = sg.attach(t.optimizer, clip=clip)
        t.step()
        assert steady.last.action == "clip", name
        assert in_place, name
        in_place.clear()


def test_a_loaded_state_that_is_not_fused_is_noticed(training, in_place):
    t = training(lambda m: CLASSES[1](m.parameters()))
    sg.attach(t.optimizer, clip="norm:0.01")
    state = copy.deepcopy(t.optimizer.state_dict())
    state["param_groups"][0]["fused"] = False
    t.optimizer.load_state_dict(state)
    t.step()
    assert in_place == [4]


class OnDevice(torch.Tensor):
    """A CPU flag that says it is elsewhere, so that the hand-over of skipping can be run here."""

    device = torch.device("cuda", 0)

    def to(self, *args, **kwargs):
        return self.as_subclass(torch.Tensor).to(torch.float32)


@pytest.mark.parametrize("make", CLASSES)
def test_skipping_is_handed_over_once_state_exists(training, make):
    t = training(lambda m: make(m.parameters()))
    flag = torch.tensor(True).as_subclass(OnDevice)
    folding = Folding()
    t.backward()
    assert folding.skip(t.optimizer, flag) is (isinstance(t.optimizer, torch.optim.Adagrad))
    folding.take_back()
    t.step()
    before = t.everything()
    t.backward(float("nan"))
    assert folding.skip(t.optimizer, flag)
    assert t.optimizer.found_inf == 1.0
    t.optimizer.step()
    assert t.same_as(before)
    folding.take_back()
    assert not hasattr(t.optimizer, "found_inf")


def test_a_flag_on_the_cpu_is_not_handed_over(training):
    t = training(lambda m: CLASSES[1](m.parameters()))
    t.step()
    assert not Folding().skip(t.optimizer, torch.tensor(True))
