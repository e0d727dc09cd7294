"""No drop-in does nothing without a word: each message, and what it says to type."""

from __future__ import annotations

import math
import sys

import pytest
import torch

import steadygrad.torch as sg
from steadygrad.errors import NoGradientsWarning, UsageError

CALLS = {
    "clip_grad_norm_": lambda p: sg.clip_grad_norm_(p, 1.0),
    "clip_grad_value_": lambda p: sg.clip_grad_value_(p, 1.0),
    "clip_grads_with_norm_": lambda p: sg.clip_grads_with_norm_(p, 1.0, 2.0),
}
every_call = pytest.mark.parametrize("name", CALLS)


def model_with_grads():
    model = torch.nn.Linear(2, 1)
    model(torch.ones(1, 2)).sum().backward()
    return model


@every_call
def test_gradients_in_place_of_parameters(name):
    grads = [p.grad for p in model_with_grads().parameters()]
    with pytest.raises(UsageError, match=rf"gradients in place .* Type {name}\(model.parameters"):
        CALLS[name](grads)


@every_call
def test_gradients_with_a_graph_in_place_of_parameters(name):
    weight = torch.nn.Parameter(torch.ones(2))
    grads = torch.autograd.grad((weight**2).sum(), [weight], create_graph=True)
    with pytest.raises(UsageError, match="gradients in place of parameters"):
        CALLS[name](grads)


@every_call
def test_parameters_without_gradients_are_told_apart_and_warned_of(name):
    model = torch.nn.Linear(2, 1)
    with pytest.warns(NoGradientsWarning, match=r"none of the 2 parameters.*after loss.backward"):
        CALLS[name](model.parameters())
    leaf = torch.zeros(2, requires_grad=True)
    with pytest.warns(NoGradientsWarning, match="none of the 1 parameters"):
        CALLS[name](leaf)


@every_call
def test_frozen_parameters_are_not_gradients(name):
    model = torch.nn.Linear(2, 1).requires_grad_(False)
    with pytest.warns(NoGradientsWarning):
        CALLS[name](model.parameters())


@every_call
def test_an_exhausted_generator(name):
    spent = model_with_grads().parameters()
    list(spent)
    with pytest.warns(NoGradientsWarning, match=r"gives its tensors once.*model.parameters"):
        CALLS[name](spent)
    with pytest.warns(NoGradientsWarning, match="got no tensor at all, so"):
        CALLS[name]([])


def test_the_norm_of_nothing_is_a_zero_tensor():
    with pytest.warns(NoGradientsWarning):
        norm = sg.clip_grad_norm_([], 1.0)
    assert (norm.item(), norm.ndim) == (0.0, 0)
    with pytest.warns(NoGradientsWarning, match="get_total_norm got no tensor"):
        assert sg.get_total_norm([]).item() == 0.0


@every_call
def test_the_same_parameter_twice(name):
    weight = next(model_with_grads().parameters())
    before = weight.grad.clone()
    with pytest.raises(UsageError, match=r"same tensor twice.*dict.fromkeys"):
        CALLS[name]([weight, weight])
    assert torch.equal(weight.grad, before)


@every_call
def test_named_parameters_a_module_a_mapping_and_a_number(name):
    model = model_with_grads()
    with pytest.raises(UsageError, match=r"got tuple.*without the names"):
        CALLS[name](model.named_parameters())
    with pytest.raises(UsageError, match=rf"got a module; type {name}\(model.parameters"):
        CALLS[name](model)
    with pytest.raises(UsageError, match="got dict"):
        CALLS[name](dict(model.named_parameters()))
    with pytest.raises(UsageError, match="got float"):
        CALLS[name](1.0)


@pytest.mark.parametrize("value", [-1.0, math.nan])
def test_negative_and_nan_thresholds(value):
    params = list(model_with_grads().parameters())
    before = [p.grad.clone() for p in params]
    for call, word in (
        (lambda: sg.clip_grad_norm_(params, value), "max_norm"),
        (lambda: sg.clip_grads_with_norm_(params, value, 1.0), "max_norm"),
        (lambda: sg.clip_grad_value_(params, value), "clip_value"),
    ):
        with pytest.raises(UsageError, match=rf"{word} must be 0 or more.*Type {word}=1.0"):
            call()
    assert all(torch.equal(p.grad, b) for p, b in zip(params, before, strict=True))


@pytest.mark.parametrize("p", [0, 0.0, -1.0, 0.3, math.nan, -math.inf])
def test_norm_types_that_are_no_norms(p):
    params = list(model_with_grads().parameters())
    for call in (
        lambda: sg.clip_grad_norm_(params, 1.0, norm_type=p),
        lambda: sg.get_total_norm([x.grad for x in params], p),
        lambda: sg.measure(params, p),
    ):
        with pytest.raises(UsageError, match=r"at least 0.5 or inf.*beyond any float.*norm_type=2"):
            call()


def test_only_the_parameters_with_gradients_count():
    model = model_with_grads()
    model.bias.grad = None
    expected = model.weight.grad.double().norm().item()
    assert sg.clip_grad_norm_(model.parameters(), 100.0).item() == pytest.approx(expected)


class _FlatShard(torch.nn.Parameter):
    _fsdp_flattened = True


def test_pieces_of_fsdp1_whose_module_is_gone_are_refused(monkeypatch):
    import torch.distributed.fsdp  # without it nothing can be sharded so

    monkeypatch.setattr(sys, "excepthook", sys.excepthook)  # a process group takes it

    weight = _FlatShard(torch.zeros(2))
    weight.grad = torch.ones(2)
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        with pytest.raises(UsageError, match=r"FSDP1.*Keep the module.*fully_shard"):
            sg.clip_grad_norm_([weight], 1.0)
        with pytest.raises(UsageError, match=r"FSDP1.*Keep the module.*fully_shard"):
            sg.attach(torch.optim.SGD([weight], lr=0.1), clip="norm:1.0")
    finally:
        torch.distributed.destroy_process_group()
