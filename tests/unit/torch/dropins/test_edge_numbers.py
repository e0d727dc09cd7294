"""Numbers at the edge of what float64 holds, and memory that several gradients share."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import steadygrad.torch as sg
from steadygrad import kernels
from steadygrad.errors import NonFiniteError, UsageError

FORMS = ["reference", *(name for name in ("c",) if kernels.native.AVAILABLE)]
HUGE = 1e308


def attached(grad, **how):
    weight = torch.nn.Parameter(torch.zeros(grad.shape, dtype=grad.dtype))
    optimizer = torch.optim.SGD([weight], lr=10.0)
    steady = sg.attach(optimizer, **how)
    weight.grad = grad
    return weight, optimizer, steady


@pytest.mark.parametrize("clip", ["norm:1.0", "auto", "norm:1.0,p=1", "tensor-norm:1.0"])
def test_finite_gradients_whose_norm_no_float_holds_are_skipped(clip):
    weight, optimizer, steady = attached(torch.full((4,), HUGE, dtype=torch.float64), clip=clip)
    optimizer.step()
    assert not weight.detach().any()
    assert (steady.last.action, steady.last.norm, steady.last.nonfinite) == ("skip", math.inf, 0)


def test_they_raise_or_become_zero_where_that_is_asked_for():
    grad = torch.full((4,), HUGE, dtype=torch.float64)
    _, optimizer, _ = attached(grad, on_nonfinite="raise")
    with pytest.raises(NonFiniteError, match="their norm is beyond any float64"):
        optimizer.step()
    weight, optimizer, steady = attached(grad, on_nonfinite="zero")
    optimizer.step()
    assert not weight.detach().any()
    assert (steady.last.action, steady.last.coef) == ("clip", 0.0)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("p", [1.0, 2.0, math.inf])
def test_a_complex_magnitude_that_no_float_holds_counts_as_not_finite(form, p):
    grad = torch.tensor([complex(1.5 * HUGE, 1.5 * HUGE), 3 + 4j], dtype=torch.complex128)
    figures = kernels.read([grad], p, form=form)
    assert figures.norms.tolist() == [math.inf]
    assert (figures.max_abs.tolist(), figures.nonfinite.tolist()) == ([5.0], [1])


def test_it_is_zeroed_as_a_whole():
    grad = torch.tensor([complex(1.5 * HUGE, 1.5 * HUGE), 0.5 + 0j], dtype=torch.complex128)
    weight, optimizer, _ = attached(grad, on_nonfinite="zero")
    optimizer.step()
    assert weight.tolist() == [0, -5 + 0j]


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support")
def test_a_compressed_complex_gradient_is_scaled():
    dense = torch.tensor([[3 + 4j, 0], [0, 1j]], dtype=torch.complex64)
    grad = dense.to_sparse_csr()
    kernels.scale_([grad], 0.5)
    assert torch.equal(grad.to_dense(), dense / 2)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2], ids=str)
def test_products_of_8_bits_are_rounded_once(dtype):
    # the product is just above a tie; float32 would round it to the tie, and that to even
    step = torch.finfo(dtype).eps
    value, coef = 1.0, 1.0 + step / 2 + 2.0**-40
    grad = torch.tensor([value]).to(dtype)
    kernels.scale_([grad], coef)
    assert grad.double().item() == 1.0 + step


@pytest.mark.parametrize("view", [lambda g: g, lambda g: g.detach(), lambda g: g.view(2)])
@pytest.mark.parametrize("clip", ["norm:1.0", "tensor-norm:1.0", "fused"])
def test_one_tensor_that_is_the_gradient_of_two_parameters_is_scaled_once(view, clip):
    grad = torch.tensor([3.0, 4.0])
    params = [torch.nn.Parameter(torch.zeros(2)) for _ in range(2)]
    params[0].grad, params[1].grad = grad, view(grad)
    optimizer = torch.optim.SGD(params, lr=0.0, fused=clip == "fused")
    with sg.attach(optimizer, clip="norm:1.0" if clip == "fused" else clip) as steady:
        optimizer.step()
    expected = 5.0 if clip == "tensor-norm:1.0" else math.sqrt(50)
    assert grad.tolist() == pytest.approx([3 / expected, 4 / expected])
    assert steady.last.norm == pytest.approx(math.sqrt(50))


def test_an_expanded_gradient_is_scaled_and_clamped():
    weight = torch.nn.Parameter(torch.zeros(4))
    weight.grad = torch.ones(1).expand(4)
    assert sg.clip_grad_norm_(weight, 1.0).item() == 2.0
    assert weight.grad.tolist() == [0.5] * 4
    sg.clip_grad_value_(weight, 0.25)
    assert weight.grad.tolist() == [0.25] * 4


class Locked(torch.Tensor):
    """Cannot be written."""

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        if function.__name__ == "copy_":
            raise RuntimeError("locked")
        return super().__torch_function__(function, types, args, kwargs)


def test_where_one_gradient_cannot_be_written_none_is():
    locked, ordinary = torch.ones(3).as_subclass(Locked), torch.ones(3)
    with pytest.raises(RuntimeError, match="locked"):
        kernels.scale_([ordinary, locked], np.array([0.5, 0.5]))
    assert ordinary.tolist() == [1.0] * 3


@pytest.mark.parametrize("name", ["max_norm", "norm_type"])
@pytest.mark.parametrize("value", ["a", None, [1.0]])
def test_an_argument_that_is_no_number_is_named(name, value):
    weight = torch.nn.Parameter(torch.zeros(1))
    with pytest.raises(UsageError, match=f"clip_grad_norm_: {name} must be a number"):
        sg.clip_grad_norm_(weight, **{"max_norm": 1.0, name: value})


@pytest.mark.parametrize("sparse_dim", [1, 2])
@pytest.mark.parametrize("axes", ["timm", "optax"])
def test_agc_of_a_sparse_gradient_is_that_of_the_dense_one(sparse_dim, axes):
    weights = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    grad = torch.zeros(6, 3)
    grad[1], grad[4] = torch.tensor([30.0, 4, 5]), torch.tensor([1.0, 40, 5])
    after = []
    for each in (grad, grad.to_sparse(sparse_dim)):
        weight = torch.nn.Parameter(weights.clone())
        optimizer = torch.optim.SGD([weight], lr=1.0)
        sg.attach(optimizer, clip=f"agc:0.1,axes={axes},exempt=none")
        weight.grad = each.clone()
        optimizer.step()
        after.append(weight.detach())
    assert torch.equal(*after)
    assert not torch.allclose(after[0], weights - grad)
