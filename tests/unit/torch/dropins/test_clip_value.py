"""clip_grad_value_: torch's meaning, in every dtype and layout."""

from __future__ import annotations

import math

import pytest
import torch

import steadygrad.torch as sg


def parameter(grad):
    weight = torch.nn.Parameter(torch.zeros(grad.shape, dtype=grad.dtype))
    weight.grad = grad
    return weight


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("foreach", [None, True, False])
def test_agrees_with_torch(dtype, foreach):
    grad = torch.linspace(-3, 3, 101).to(dtype)
    ours, theirs = parameter(grad.clone()), parameter(grad.clone())
    sg.clip_grad_value_([ours], 0.7, foreach=foreach)
    torch.nn.utils.clip_grad_value_([theirs], 0.7, foreach=foreach)
    assert not torch.equal(ours.grad, grad)
    assert torch.equal(ours.grad, theirs.grad)


def test_tensors_without_a_larger_element_are_not_written():
    small, large = parameter(torch.tensor([0.5, -0.5])), parameter(torch.tensor([0.6]))
    version = small.grad._version
    sg.clip_grad_value_([small, large], 0.5)
    assert small.grad._version == version
    assert large.grad.tolist() == [0.5]


def test_infinite_elements_are_clamped_and_nan_stays():
    weight = parameter(torch.tensor([math.inf, -math.inf, math.nan, 0.1]))
    sg.clip_grad_value_(weight, 2.0)
    assert weight.grad[:2].tolist() == [2.0, -2.0]
    assert math.isnan(weight.grad[2])


def test_a_limit_that_float16_cannot_hold():
    weight = parameter(torch.tensor([math.inf, 3.0], dtype=torch.float16))
    sg.clip_grad_value_(weight, 1e6)
    assert weight.grad.tolist() == [65504.0, 3.0]


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
def test_complex_elements_keep_their_phase(dtype):
    weight = parameter(torch.tensor([complex(3, 4), complex(0.1, 0), complex(-6, 8)], dtype=dtype))
    sg.clip_grad_value_(weight, 1.0)
    got = weight.grad.tolist()
    expected = [complex(0.6, 0.8), complex(0.1, 0), complex(-0.6, 0.8)]
    assert all(abs(a - b) < 1e-6 for a, b in zip(got, expected, strict=True))


def test_the_elements_of_a_sparse_gradient_are_sums_of_its_duplicates():
    weight = torch.nn.Parameter(torch.zeros(4))
    values = torch.tensor([0.4, 0.4, -0.4])
    weight.grad = torch.sparse_coo_tensor([[1, 1, 3]], values, (4,), check_invariants=True)
    sg.clip_grad_value_([weight], 0.5)
    assert weight.grad.is_sparse
    assert weight.grad.to_dense().tolist() == pytest.approx([0, 0.5, 0, -0.4])


def test_a_strided_view_is_clamped_in_place():
    base = torch.full((4, 4), 3.0)
    weight = torch.nn.Parameter(torch.zeros(4))
    weight.grad = base[:, 1]
    sg.clip_grad_value_([weight], 1.0)
    assert base[:, 1].tolist() == [1.0] * 4
    assert base[:, 0].tolist() == [3.0] * 4


def test_zero_is_a_limit():
    weight = parameter(torch.tensor([3.0, -4.0]))
    sg.clip_grad_value_(weight, 0.0)
    assert weight.grad.abs().tolist() == [0.0, 0.0]
