"""One suite for every form of the kernel: the same figures, the same scaling."""

from __future__ import annotations

import math
import os

import numpy as np
import pytest
import torch

from steadygrad import kernels
from steadygrad.errors import KernelError
from steadygrad.kernels import native
from steadygrad.kernels.reference import stored_values

# The Triton form runs this suite in Triton's interpreter: test_triton_form.py starts it.
ASKED = os.environ.get("STEADYGRAD_TEST_FORMS")
FORMS = ASKED.split() if ASKED else ["reference", "auto", *native.FORMS]
REAL = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
COMPLEX = (torch.complex64, torch.complex128)
LAYOUTS = (
    "contiguous",
    "transposed",
    "channels_last",
    "strided",
    "offset",
    "0d",
    "empty",
    "sparse",
)
HOLDING = ("contiguous", "strided", "channels_last", "sparse")
NORM_TYPES = (0.5, 1.0, 2.0, 3.0, math.inf)


def lay_out(dense: torch.Tensor, layout: str) -> torch.Tensor:
    """The elements of a 4-d tensor (or some of them) in another layout."""
    if layout == "sparse":
        flat = dense.reshape(-1)[:40]
        indices = torch.arange(40).reshape(1, -1) * 3 % 100  # every third place, in no order
        return torch.sparse_coo_tensor(indices, flat, (100,), check_invariants=True)
    return {
        "contiguous": lambda: dense,
        "transposed": lambda: dense.permute(3, 1, 0, 2),
        "channels_last": lambda: dense.to(memory_format=torch.channels_last),
        "strided": lambda: dense[:, ::2, :, 1:6:3],
        "offset": lambda: dense.reshape(-1)[3:-2],
        "0d": lambda: dense[0, 0, 0, 0],
        "empty": lambda: dense[:0],
    }[layout]()


def magnitudes(tensor: torch.Tensor) -> np.ndarray:
    """|g| of every stored element, float64, in NumPy."""
    values = stored_values(tensor) if tensor.layout is not torch.strided else tensor
    wide = values.to(torch.complex128 if values.is_complex() else torch.float64)
    return np.abs(wide.resolve_conj().numpy()).ravel()


def oracle_norm(values: np.ndarray, p: float) -> float:
    """The p-norm of magnitudes: scaled by the largest, summed exactly rounded by `fsum`."""
    top = float(values.max()) if values.size else 0.0
    if top == 0.0 or p == math.inf:
        return top
    return top * math.fsum((values / top) ** p) ** (1.0 / p)


DTYPES = REAL + COMPLEX
EPS = 2.0**-52


def make_gradient(dtype: torch.dtype, layout: str, seed: int = 0) -> torch.Tensor:
    """Seeded normals in a dtype and a layout, two of them zero."""
    generator = torch.Generator().manual_seed(seed)
    wide = torch.complex128 if dtype.is_complex else torch.float64
    dense = torch.randn(3, 8, 5, 7, generator=generator, dtype=wide)
    dense[0, 0, 0, 1:3] = 0
    return lay_out(dense.to(dtype), layout)


def served(form: str, layout: str) -> bool:
    """Sparse tensors are for the reference form; the others must refuse them."""
    return form in ("reference", "auto") or layout != "sparse"


CASES = [(form, layout) for form in FORMS for layout in LAYOUTS if served(form, layout)]


@pytest.mark.parametrize(("form", "layout"), CASES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_read_agrees_with_the_oracle(dtype, layout, form):
    grad = make_gradient(dtype, layout)
    values = magnitudes(grad)
    for p in NORM_TYPES:
        figures = kernels.read([grad, grad], p, form=form)
        expected = oracle_norm(values, p)
        # n terms summed pairwise or in lanes, each rounded, then a root of order p: n eps at most
        bound = (values.size + 8) * EPS * max(1.0, 1.0 / p) * expected
        assert figures.norms.dtype == np.float64
        assert np.abs(figures.norms - expected).max() <= bound, (p, figures.norms, expected)
        top = values.max() if values.size else 0.0
        # |z| is rounded by at most eps here and in the oracle; everything real is exact
        assert abs(figures.max_abs[0] - top) <= (2 * EPS * top if dtype.is_complex else 0.0)
        assert figures.nonfinite.tolist() == [0, 0]
        missing = grad.numel() - values.size
        assert figures.zeros.tolist() == [missing + int((values == 0).sum())] * 2


@pytest.mark.parametrize(("form", "layout"), [case for case in CASES if case[1] in HOLDING])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_nonfinite_elements_are_counted_and_named_by_the_norm(dtype, layout, form):
    holds_inf, holds_nan = make_gradient(dtype, layout), make_gradient(dtype, layout)
    for grad, bad in ((holds_inf, [math.inf]), (holds_nan, [math.inf, math.nan])):
        values = grad if grad.layout is torch.strided else grad._values()
        for place, value in enumerate(bad):
            values[(0,) * (values.ndim - 1) + (place,)] = value
    finite = make_gradient(dtype, layout)
    figures = kernels.read([holds_inf, holds_nan, finite], form=form)
    assert figures.norms[0] == math.inf
    assert math.isnan(figures.norms[1])
    assert math.isfinite(figures.norms[2])
    assert figures.nonfinite.tolist() == [1, 2, 0]
    assert np.isfinite(figures.max_abs).all()
    assert figures.max_abs.min() > 0


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("dtype", "value"),
    [
        (torch.float32, 1e20),
        (torch.float32, 3e38),
        (torch.float32, 1.2e-38),
        (torch.float32, 1e-25),
        (torch.float32, 1e-42),
        (torch.float64, 1e200),
        (torch.float64, 1e-200),
        (torch.float64, 1e-310),
        (torch.float16, 65504.0),
        (torch.float16, 6e-8),
        (torch.bfloat16, 3e38),
        (torch.bfloat16, 1e-38),
        (torch.complex64, 1e20),
        (torch.complex128, 1e200),
    ],
)
@pytest.mark.parametrize("p", [0.5, 1.0, 2.0, 3.0])
def test_extreme_magnitudes_are_exact(dtype, value, p, form):
    grad = torch.full((1000,), value, dtype=dtype)
    figures = kernels.read([grad], p, form=form)
    expected = oracle_norm(magnitudes(grad), p)
    assert figures.norms[0] == pytest.approx(expected, rel=1e-12)
    assert math.isfinite(expected)
    assert expected > 0


@pytest.mark.parametrize("form", FORMS)
def test_long_rows_of_equal_elements_keep_their_precision(form):
    grad = torch.full((1 << 21,), 0.1)
    expected = float(np.float32(0.1)) * math.sqrt(1 << 21)
    assert kernels.read([grad], form=form).norms[0] == pytest.approx(expected, rel=1e-9)


def test_a_form_that_cannot_serve_says_so():
    with pytest.raises(KernelError, match="sparse_coo"):
        kernels.read([make_gradient(torch.float32, "sparse")], form="c")
    with pytest.raises(KernelError, match=r"no kernel form 'fortran'; there are: .*reference"):
        kernels.read([], form="fortran")


@pytest.mark.parametrize("form", ["reference", "auto"])
def test_float16_duplicates_of_a_sparse_gradient_are_summed_wider(form):
    values = torch.tensor([60000.0, 60000.0, 3.0], dtype=torch.float16)
    grad = torch.sparse_coo_tensor([[0, 0, 2]], values, (4,), check_invariants=True)
    figures = kernels.read([grad], form=form)
    assert figures.norms[0] == pytest.approx(math.hypot(2 * float(values[0]), 3.0), rel=1e-12)
    assert figures.nonfinite[0] == 0
    assert figures.zeros[0] == 2


@pytest.mark.parametrize("form", FORMS)
def test_no_tensors_give_no_figures(form):
    assert kernels.read([], form=form).norms.shape == (0,)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name != "sparse"])
@pytest.mark.parametrize("dtype", REAL, ids=str)
def test_scaling_rounds_the_exact_product_once(dtype, layout, form):
    grad = make_gradient(dtype, layout)
    coef = 0.7310585786300049
    expected = _rounded_once(grad.to(torch.float64).numpy() * coef, dtype)
    kernels.scale_([grad], coef, form=form)
    assert np.array_equal(grad.to(torch.float64).numpy(), expected)


@pytest.mark.parametrize("form", FORMS)
def test_scaling_a_complex_gradient_keeps_its_phase_even_where_it_is_infinite(form):
    grad = torch.tensor([complex(3, -4), complex(math.inf, 1)])
    kernels.scale_([grad], 0.5, form=form)
    assert grad.tolist() == [complex(1.5, -2), complex(math.inf, 0.5)]


@pytest.mark.parametrize("form", FORMS)
def test_a_coefficient_of_one_writes_nothing(form):
    grads = [torch.ones(4), torch.ones(4)]
    versions = [grad._version for grad in grads]
    pointers = [grad.data_ptr() for grad in grads]
    frozen = torch.ones(4).numpy()
    frozen.flags.writeable = False
    kernels.scale_(grads, np.array([1.0, 0.5]), form=form)
    assert grads[0]._version == versions[0]
    assert [grad.data_ptr() for grad in grads] == pointers
    assert grads[1].tolist() == [0.5] * 4


def _rounded_once(product: np.ndarray, dtype: torch.dtype) -> np.ndarray:
    """Round float64 to a dtype, ties to even, by arithmetic of NumPy's own."""
    bits, least = {
        torch.float64: (53, -1074),
        torch.float32: (24, -149),
        torch.float16: (11, -24),
        torch.bfloat16: (8, -133),
    }[dtype]
    exponent = np.frexp(product)[1] - bits
    unit = np.ldexp(1.0, np.maximum(exponent, least))
    return np.rint(product / unit) * unit
