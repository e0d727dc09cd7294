"""What C samples of activations and weights, against the same written with NumPy's float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from steadygrad.kernels import native

pytestmark = pytest.mark.skipif(
    not native.AVAILABLE or native._EXCHANGE is None, reason="torch tells C of no tensor here"
)
MOST = 64
SHAPES = {"rows": (40, 6), "sequences": (5, 7, 6), "one row": (1, 3), "wider than all": (9, 100)}
RANGES = {
    "tanh": lambda x: np.tanh(3 * x),
    "sigmoid": lambda x: 1 / (1 + np.exp(-9 * x)),
    "relu": lambda x: np.maximum(x, 0),
    "relu up to 1": lambda x: np.minimum(np.maximum(x, 0), 0.5),
    "any": lambda x: 5 * x,
    "zeros": lambda x: 0 * x,
}


def _activation(shape: tuple[int, ...], kind: str) -> np.ndarray:
    drawn = RANGES[kind](np.random.default_rng(len(shape)).normal(size=shape)).astype(np.float32)
    drawn[..., 1] = 0  # a unit that is dead
    return drawn


def _saturated(taken: np.ndarray) -> float:
    low, high = taken.min(), taken.max()
    if not (low >= -1 and high <= 1):
        return 0.0
    if low < 0:
        return float((np.abs(taken) > np.float32(0.99)).mean())
    sigmoid = low > 0 or high == 1
    return float((np.abs(taken - np.float32(0.5)) > np.float32(0.49)).mean()) if sigmoid else 0.0


def _spread_rows(rows: np.ndarray) -> np.ndarray:
    width = rows.size // len(rows)
    return rows[:: -(-len(rows) // max(1, MOST // width))]


@pytest.mark.parametrize("kind", RANGES)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_units(shape: tuple[int, ...], kind: str) -> None:
    value = _activation(shape, kind)
    rows = value.reshape(-1, shape[-1])
    expected = (rows == 0).all(axis=0).mean(), _saturated(_spread_rows(rows))
    assert native.try_units(torch.from_numpy(value), -1, MOST) == pytest.approx(expected)


@pytest.mark.parametrize("kind", RANGES)
def test_units_of_an_image_are_its_channels(kind: str) -> None:
    value = np.moveaxis(_activation((4, 5, 3, 6), kind), -1, 1).copy()
    rows = np.moveaxis(value, 1, -1).reshape(-1, 6)
    expected = (rows == 0).all(axis=0).mean(), _saturated(_spread_rows(rows))
    assert native.try_units(torch.from_numpy(value), 1, MOST) == pytest.approx(expected)


@pytest.mark.parametrize("broken", [np.nan, np.inf])
def test_units_that_are_not_finite_are_neither_dead_nor_saturated(broken: float) -> None:
    value = torch.zeros(8, 4)
    value[3, 2] = broken
    assert native.try_units(value, -1, MOST) == (0.75, 0.0)


@pytest.mark.parametrize("shape", [*SHAPES.values(), (200,)])
def test_deviation(shape: tuple[int, ...]) -> None:
    value = 1e3 + np.random.default_rng(0).normal(size=shape).astype(np.float32)
    expected = _spread_rows(value).astype(np.float64).std(ddof=1)
    got = native.try_deviation(torch.from_numpy(value.astype(np.float32)), MOST)
    # by rounding alone: the value is 1e3, in double
    assert got == pytest.approx(_spread_rows(value.astype(np.float32)).std(ddof=1, dtype=float))
    assert got == pytest.approx(expected, rel=1e-3)


def test_parts() -> None:
    dtypes = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
    tensors = [torch.randn(n, 7).to(d) for d, n in zip(dtypes, (1, 9, 10, 300), strict=True)]
    tensors.insert(2, torch.zeros(0))
    parts = native.try_parts(tensors, MOST)
    steps = [-(-t.numel() // MOST) or 1 for t in tensors]
    expected = [t.flatten()[::step].double() for t, step in zip(tensors, steps, strict=True)]
    assert parts is not None
    np.testing.assert_array_equal(parts, torch.cat(expected).numpy())


def test_what_is_not_served() -> None:
    value = torch.randn(6, 4)
    negated = torch._neg_view(value)  # whose memory holds the opposite
    for other in (value.T, value.double(), value.to_sparse(), value.to("meta"), negated, [1.0], 1):
        assert native.try_units(other, -1, MOST) is None
        assert native.try_deviation(other, MOST) is None
    assert native.try_units(torch.ones(3), -1, MOST) is None
    assert native.try_units(torch.ones(3, 0), -1, MOST) is None
    assert native.try_deviation(torch.ones(1, 1), MOST) is None
    for other in (value.T, value.to(torch.complex64), value.int()):
        assert native.try_parts([torch.ones(2), other], MOST) is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_a_loss_is_what_item_gives(dtype: torch.dtype) -> None:
    for value in (-1.1, 1e-7, 65504.0, float("inf")):
        loss = torch.tensor(value, dtype=dtype, requires_grad=True)
        assert native.try_number(loss) == loss.item()
        assert native.try_number(torch.stack([loss, loss])[1:].view(1, 1)) == loss.item()
    assert np.isnan(native.try_number(torch.tensor(float("nan"), dtype=dtype)))


def test_what_is_no_loss_that_c_reads() -> None:
    one = torch.tensor(2.0)
    for other in (one.long(), one.to("meta"), torch._neg_view(one), one.to(torch.cfloat), 2.0):
        assert native.try_number(other) is None
    assert native.try_number(torch.ones(2)) is None
    assert native.try_number(torch.ones(0)) is None


def test_the_groups_of_an_optimizer_hold_these_parameters_or_others() -> None:
    a, b, c = (torch.nn.Parameter(torch.ones(1)) for _ in range(3))
    for holds in (native.holds, native._hold):
        assert holds([{"params": [a]}, {"params": (b, c)}], [a, b, c])
        assert holds([{"params": [a, a]}], [a, a])
        for others in ([a, b], [a, c, b], [a, b, c, a], [], [a, b, torch.ones(1)]):
            assert not holds([{"params": [a, b]}, {"params": [c]}], others)


def test_gradients_are_sealed_as_their_list_is() -> None:
    parameters = [torch.nn.Parameter(torch.ones(n)) for n in (3, 5)]
    assert native.try_seal_gradients(parameters, False) is None  # none has a gradient yet
    for parameter in parameters:
        parameter.grad = torch.randn(parameter.shape)
    expected = native.try_seal([parameter.grad for parameter in parameters])
    for any_sparse in (False, True):
        assert native.try_seal_gradients(parameters, any_sparse) == expected is not None


def _with_gradient(gradient: torch.Tensor) -> torch.nn.Parameter:
    zeros = torch.zeros(gradient.shape, dtype=gradient.dtype, device=gradient.device)
    parameter = torch.nn.Parameter(zeros)
    parameter.grad = gradient
    return parameter


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.complex64])
def test_sparse_gradients_are_sealed_by_what_they_store(dtype: torch.dtype) -> None:
    rows = torch.tensor([[3.0, 0.0], [1.0, -1.0], [1.0, 2.0], [float("inf"), 2.0]]).to(dtype)
    twice = torch.sparse_coo_tensor([[5, 2, 5, 0]], rows, (7, 2), check_invariants=True)
    grads = [twice, torch.arange(6.0), twice.coalesce(), torch.ones(3).to_sparse()]
    figures = native.try_seal_gradients(list(map(_with_gradient, grads)), True)
    if dtype is torch.complex64 or figures is None:  # added up elsewhere, or nothing is built
        assert figures is None
        return
    read = native.opened(figures)
    dense = [np.array(grad.to_dense().tolist()) for grad in grads]
    # a place that holds inf has no norm: what is left is compared with a float64 oracle
    assert read.norms[0] == read.norms[2] == np.inf
    np.testing.assert_allclose(read.norms[[1, 3]], [np.linalg.norm(dense[i]) for i in (1, 3)])
    finite = [each[np.isfinite(each)] for each in dense]
    np.testing.assert_array_equal(read.max_abs, [np.abs(each).max() for each in finite])
    np.testing.assert_array_equal(read.nonfinite, [1, 0, 1, 0])
    np.testing.assert_array_equal(read.zeros, [(each == 0).sum() for each in dense])


def test_sparse_gradients_that_c_leaves_to_others_are_refused() -> None:
    places = torch.zeros((2, 3), dtype=torch.long)
    flat = torch.sparse_coo_tensor(places, torch.ones(3), (4, 4), check_invariants=True)
    for gradient in (flat, torch.ones(3).to_sparse().to("meta")):
        assert native.try_seal_gradients([_with_gradient(gradient)], True) is None
