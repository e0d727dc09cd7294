"""clip_grad_norm_, get_total_norm, clip_grads_with_norm_: torch's meaning, without its faults."""

from __future__ import annotations

import inspect
import math

import numpy as np
import pytest
import torch

import steadygrad.torch as sg
from steadygrad.errors import NonFiniteError


def parameters(*grads):
    params = []
    for grad in grads:
        params.append(torch.nn.Parameter(torch.zeros(grad.shape, dtype=grad.dtype)))
        params[-1].grad = grad
    return params


def norm_of(params, p=2.0):
    parts = [x.grad.to_dense() if x.grad.layout is not torch.strided else x.grad for x in params]
    flat = np.concatenate([np.abs(x.to(torch.complex128).numpy()).ravel() for x in parts])
    return float(np.linalg.norm(flat, p))


@pytest.mark.parametrize(
    "name",
    ["clip_grad_norm_", "clip_grad_value_", "get_total_norm", "clip_grads_with_norm_"],
)
def test_signatures_are_those_of_torch(name):
    ours = inspect.signature(getattr(sg, name)).parameters
    theirs = inspect.signature(getattr(torch.nn.utils, name)).parameters
    assert [(p.name, p.kind, p.default) for p in ours.values()] == [
        (p.name, p.kind, p.default) for p in theirs.values()
    ]


@pytest.mark.parametrize("p", [1.0, 2.0, 3.0, math.inf])
@pytest.mark.parametrize("foreach", [None, True, False])
def test_agrees_with_torch_where_torch_is_right(p, foreach):
    generator = torch.Generator().manual_seed(1)
    grads = [torch.randn(n, generator=generator) for n in (3, 1000, 7)]
    ours = parameters(*[g.clone() for g in grads])
    theirs = parameters(*[g.clone() for g in grads])
    norm = sg.clip_grad_norm_(ours, 1.5, norm_type=p, foreach=foreach)
    expected = torch.nn.utils.clip_grad_norm_(theirs, 1.5, norm_type=p, foreach=foreach)
    assert norm > 1.5  # it did clip
    assert norm.item() == pytest.approx(expected.item(), rel=1e-5)
    for ours_one, theirs_one in zip(ours, theirs, strict=True):
        torch.testing.assert_close(ours_one.grad, theirs_one.grad, rtol=1e-5, atol=0)
    assert norm_of(ours, p) == pytest.approx(1.5, rel=1e-6)


def test_there_is_no_epsilon():
    weight = parameters(torch.tensor([3.0, 4.0]))
    assert sg.clip_grad_norm_(weight, 5.0).item() == 5.0
    assert weight[0].grad.tolist() == [3.0, 4.0]
    tiny = parameters(torch.tensor([3.0, 4.0], dtype=torch.float64))
    sg.clip_grad_norm_(tiny, 1e-8)
    assert norm_of(tiny) == pytest.approx(1e-8, rel=1e-15)


def test_nothing_is_written_at_or_below_the_threshold():
    grad = torch.tensor([3.0, 4.0])
    version = grad._version
    sg.clip_grad_norm_(parameters(grad), 5.0)
    assert grad._version == version
    # a read-only page would fault: NumPy's flag is seen by the kernel's caller, the bits by us
    before = grad.numpy().tobytes()
    sg.clip_grad_norm_(parameters(grad), 6.0)
    assert grad.numpy().tobytes() == before


def test_every_element_is_the_exact_product_rounded_once():
    generator = torch.Generator().manual_seed(2)
    grad = torch.randn(5000, generator=generator)
    exact = grad.double().numpy()
    weight = parameters(grad.clone())
    norm = sg.clip_grad_norm_(weight, 0.37).item()
    assert np.array_equal(weight[0].grad.numpy(), (exact * (0.37 / norm)).astype(np.float32))


@pytest.mark.parametrize(
    ("grad", "norm"),
    [
        (torch.full((4,), 1e20), 2e20),  # torch: inf, and every gradient zeroed
        (torch.full((2,), 3e38), 3e38 * math.sqrt(2)),  # over float32's largest number
        (torch.full((4,), 1e-25), 2e-25),  # torch: 0
        (torch.full((4,), 300.0, dtype=torch.float16), 600.0),
        (torch.full((10000,), 1000.0, dtype=torch.float16), 1e5),  # over 65504
        (torch.full((4,), 2e200, dtype=torch.float64), 4e200),  # torch demands an error here
        (torch.full((4,), 1e-200, dtype=torch.float64), 2e-200),
        (torch.full((1 << 20,), 0.1), float(np.float32(0.1)) * 1024),
        (torch.ones(4_096_000, dtype=torch.bfloat16), math.sqrt(4_096_000)),
    ],
    ids=lambda value: f"{value.dtype}" if isinstance(value, torch.Tensor) else f"{value:.3g}",
)
def test_norms_that_float32_sums_get_wrong(grad, norm):
    weight = parameters(grad)
    stored = grad.double()
    expected = float(torch.linalg.vector_norm(stored / stored.max()) * stored.max())
    found = sg.clip_grad_norm_(weight, norm / 3, error_if_nonfinite=True)
    assert found.dtype == torch.float64
    assert found.item() == pytest.approx(expected, rel=1e-9)
    assert found.item() == pytest.approx(norm, rel=2e-3)  # what the dtype stores of the value
    after = sg.get_total_norm([weight[0].grad]).item()
    # each element is rounded by its dtype: half a unit in the last place
    eps = torch.finfo(grad.dtype).eps
    assert after == pytest.approx(norm / 3, rel=eps)


def test_thirty_eight_million_normals_as_one_vector():
    generator = torch.Generator().manual_seed(3)
    block = torch.randn(1 << 20, generator=generator)
    square = float((block.double() ** 2).sum())
    grads = [block.repeat(37)]
    found = sg.get_total_norm(grads).item()
    assert found == pytest.approx(math.sqrt(37 * square), rel=1e-10)


@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
def test_nonfinite_gradients_are_left_alone_and_told_of(bad):
    broken, whole = torch.tensor([1.0, bad]), torch.tensor([30.0, 40.0])
    before = [broken.numpy().tobytes(), whole.numpy().tobytes()]
    norm = sg.clip_grad_norm_(parameters(broken, whole), 1.0)
    assert not math.isfinite(norm)
    assert [broken.numpy().tobytes(), whole.numpy().tobytes()] == before


def test_error_if_nonfinite_raises_before_anything_is_written():
    broken, whole = torch.tensor([1.0, math.inf]), torch.tensor([30.0, 40.0])
    params = parameters(whole, broken)
    with pytest.raises(RuntimeError, match=r"norm of order 2\.0 .* is inf.*nothing was changed"):
        sg.clip_grad_norm_(params, 1.0, error_if_nonfinite=True)
    with pytest.raises(NonFiniteError):
        sg.get_total_norm([whole, broken], error_if_nonfinite=True)
    assert whole.tolist() == [30.0, 40.0]


def test_a_threshold_of_zero_gives_zero_gradients():
    weight = parameters(torch.tensor([3.0, -4.0]))
    assert sg.clip_grad_norm_(weight, 0.0).item() == 5.0
    assert weight[0].grad.abs().tolist() == [0.0, 0.0]
    assert sg.clip_grad_norm_(weight, 0.0).item() == 0.0  # optax: NaN
    assert weight[0].grad.abs().tolist() == [0.0, 0.0]


def test_a_tensor_a_list_and_a_generator_are_accepted():
    for form in (lambda p: p[0], list, tuple, lambda p: (x for x in p)):
        weight = parameters(torch.tensor([3.0, 4.0]))
        assert sg.clip_grad_norm_(form(weight), 1.0).item() == 5.0
        assert norm_of(weight) == pytest.approx(1.0, rel=1e-6)


def test_mixed_dtypes_none_empty_and_scalar_gradients_in_one_call():
    grads = [
        torch.full((4,), 2.0, dtype=torch.bfloat16),
        torch.full((1,), 3.0, dtype=torch.float64),
        torch.zeros(0, 5),
        torch.tensor(6.0, dtype=torch.float16),
        torch.tensor([complex(0, 2)]),
    ]
    params = [*parameters(*grads), torch.nn.Parameter(torch.ones(3))]
    for p, expected in ((2.0, math.sqrt(16 + 9 + 36 + 4)), (math.inf, 6.0), (1.0, 19.0)):
        assert sg.clip_grad_norm_(params, 1e9, norm_type=p).item() == pytest.approx(expected)
    sg.clip_grad_norm_(params, 1.0)
    assert norm_of(params[:5]) == pytest.approx(1.0, rel=4e-3)  # bfloat16 rounds
    assert [p.grad.dtype for p in params[:5]] == [g.dtype for g in grads]


def test_complex_norms_are_of_magnitudes():
    weight = parameters(torch.tensor([complex(3, 4), complex(0, 1)]))
    assert sg.clip_grad_norm_(weight, 100.0, norm_type=math.inf).item() == 5.0
    assert sg.clip_grad_norm_(weight, 100.0, norm_type=1.0).item() == 6.0
    sg.clip_grad_norm_(weight, 2.5, norm_type=math.inf)
    assert weight[0].grad.tolist() == [complex(1.5, 2), complex(0, 0.5)]


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_sparse_gradients_with_duplicates(dtype):
    values = torch.tensor([[3.0], [3.0], [8.0]], dtype=dtype)
    weight = torch.nn.Parameter(torch.zeros(5, 1, dtype=dtype))
    weight.grad = torch.sparse_coo_tensor([[1, 1, 4]], values, (5, 1), check_invariants=True)
    assert sg.clip_grad_norm_([weight], 5.0).item() == pytest.approx(10.0)
    assert weight.grad.is_sparse
    assert weight.grad.to_dense().flatten().tolist() == pytest.approx([0, 3, 0, 0, 4], rel=1e-3)
    weight.grad = weight.grad.coalesce()
    assert sg.clip_grad_norm_([weight], 2.5).item() == pytest.approx(5.0, rel=1e-3)
    assert weight.grad.to_dense().flatten().tolist() == pytest.approx([0, 1.5, 0, 0, 2], rel=1e-3)


def test_views_and_channels_last_gradients_keep_their_strides():
    base = torch.arange(1.0, 49.0)
    view = base.reshape(6, 8).t()[1:5, ::2]
    image = torch.ones(2, 3, 4, 4).to(memory_format=torch.channels_last)
    params = [torch.nn.Parameter(torch.zeros(4, 3)), torch.nn.Parameter(torch.zeros(2, 3, 4, 4))]
    params[0].grad, params[1].grad = view, image
    untouched = base.clone()
    mask = torch.ones_like(base, dtype=torch.bool)
    mask.reshape(6, 8).t()[1:5, ::2] = False
    sg.clip_grad_norm_(params, 1.0)
    assert norm_of(params) == pytest.approx(1.0, rel=1e-6)
    assert params[1].grad.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(base[mask], untouched[mask])  # what the view does not cover


@pytest.mark.parametrize("total", [10.0, torch.tensor(10.0), torch.tensor(10.0).double()])
def test_clip_grads_with_norm_accepts_any_norm(total):
    weight = parameters(torch.tensor([3.0, 4.0]))
    assert sg.clip_grads_with_norm_(weight, 1.0, total) is None
    assert weight[0].grad.tolist() == pytest.approx([0.3, 0.4])
    sg.clip_grads_with_norm_(weight, 10.0, total)
    assert weight[0].grad.tolist() == pytest.approx([0.3, 0.4])


def test_clip_grads_with_a_nonfinite_norm_writes_nothing():
    weight = parameters(torch.tensor([3.0, 4.0]))
    sg.clip_grads_with_norm_(weight, 1.0, math.nan)
    sg.clip_grads_with_norm_(weight, 1.0, torch.tensor(math.inf))
    assert weight[0].grad.tolist() == [3.0, 4.0]


def test_fifty_thousand_tensors_of_one_element():
    grads = list(torch.full((50_000,), 0.1).unbind())
    expected = float(np.float32(0.1)) * math.sqrt(50_000)
    assert sg.get_total_norm(grads).item() == pytest.approx(expected, rel=1e-12)


def test_the_norm_does_not_depend_on_the_partition():
    flat = torch.randn(100_000, generator=torch.Generator().manual_seed(4)).bfloat16()
    whole = sg.get_total_norm([flat]).item()
    for size in (1, 999, 65_536):
        if size > 1 or flat.numel() <= 200_000:
            parts = flat.split(size)
            assert sg.get_total_norm(parts).item() == pytest.approx(whole, rel=1e-12)
