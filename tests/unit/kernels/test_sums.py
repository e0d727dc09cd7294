"""Sparse gradients: entries of one place are added up in C, against sums in NumPy's float64."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from steadygrad.kernels import auto, native

DTYPES = list(native.DTYPES)
SHAPES = {
    "an embedding": ((50,), (8,)),
    "all places sparse": ((5, 4, 3), ()),
    "hybrid": ((7, 3), (2, 5)),
    "one place": ((1,), (3,)),
}
"""Name -> sizes of the sparse and of the dense dimensions."""


def _sparse(sizes: tuple[int, ...], dense: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """Many duplicates; NaN, inf and inf - inf, entries that cancel, and places stored as zeros."""
    generator = torch.Generator().manual_seed(len(sizes) + len(dense))
    entries = 60
    places = torch.stack([torch.randint(0, n, (entries,), generator=generator) for n in sizes])
    values = torch.randn(entries, *dense, dtype=torch.float64, generator=generator).to(dtype)
    places[:, 1], values[1] = places[:, 0], -values[0]
    places[:, 2:4] = places[:, 10:11]
    values[2], values[3] = math.inf, -math.inf
    values[4], values[5] = math.nan, math.inf
    values[6:20] = 0
    return _coo(places, values, (*sizes, *dense))


def _coo(places: torch.Tensor, values: torch.Tensor, size: tuple[int, ...]) -> torch.Tensor:
    return torch.sparse_coo_tensor(places, values, size, check_invariants=True)


def _oracle(sparse: torch.Tensor) -> np.ndarray:
    """The whole tensor as float64 or complex128, entries added up one by one."""
    values = sparse._values()
    wide = torch.complex128 if values.is_complex() else torch.float64
    whole = np.zeros(tuple(sparse.shape), dtype=str(wide).removeprefix("torch."))
    with np.errstate(invalid="ignore"):
        for place, row in zip(sparse._indices().T.tolist(), values.to(wide), strict=True):
            whole[tuple(place)] += row.numpy()
    return whole


def _norm(magnitudes: np.ndarray) -> float:
    if np.isfinite(magnitudes).all():
        return float(np.linalg.norm(magnitudes.ravel()))
    return math.nan if np.isnan(magnitudes).any() else math.inf


@pytest.mark.skipif(not native.AVAILABLE, reason="the extension is not built")
@pytest.mark.parametrize("finite", [True, False])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES)
def test_the_figures_are_those_of_the_sums(shape: str, dtype: torch.dtype, finite: bool) -> None:
    sparse = _sparse(*SHAPES[shape], dtype)
    if finite:
        sparse._values().nan_to_num_(0.0, 0.0, 0.0)
    before = sparse._values().clone()
    tensors = [torch.ones(3), sparse, torch.zeros(2)]
    read, sealed = auto.read(tensors), auto.seal(tensors)
    assert sealed is not None
    for one, other in zip(read[:4], native.opened(sealed)[:4], strict=True):
        np.testing.assert_array_equal(one, other)
    whole = _oracle(sparse)
    magnitudes = np.abs(whole)
    good = np.isfinite(whole)
    np.testing.assert_allclose(read.norms[1], _norm(whole if finite else _seen(whole)), rtol=1e-12)
    np.testing.assert_allclose(read.max_abs[1], magnitudes[good].max(initial=0.0), rtol=1e-12)
    assert read.nonfinite[1] == (~good).sum()
    assert read.zeros[1] == (whole == 0).sum()
    assert not sparse.is_coalesced()
    torch.testing.assert_close(sparse._values(), before, rtol=0, atol=0, equal_nan=True)


def _seen(whole: np.ndarray) -> np.ndarray:
    """A magnitude of inf with a NaN beside it is NaN here."""
    return np.where(np.isnan(whole), np.nan, np.abs(whole))


@pytest.mark.skipif(not native.AVAILABLE, reason="the extension is not built")
def test_what_stores_nothing_or_lies_elsewhere_in_memory() -> None:
    empty = _coo(torch.zeros(1, 0, dtype=torch.long), torch.zeros(0, 4), (9, 4))
    values = torch.arange(24.0).reshape(4, 6).T
    gapped = _coo(torch.tensor([[2, 0, 2, 2, 0, 8]]), values, (9, 4))
    read = auto.read([empty, gapped])
    assert read.zeros[0] == 36
    np.testing.assert_allclose(read.norms[1], np.linalg.norm(_oracle(gapped)), rtol=1e-12)
    vast = _coo(torch.ones(3, 2, dtype=torch.long), torch.ones(2), (1 << 20,) * 3)
    assert auto.read([vast]).norms[0] == 2.0


@pytest.mark.skipif(not native.AVAILABLE, reason="the extension is not built")
def test_none_among_them_is_refused_beside_sparse_ones_too() -> None:
    whole: list[Any] = [torch.ones(3), torch.ones(2).to_sparse()]
    assert auto.seal(whole) is not None
    assert auto.seal([*whole, None]) is None
    assert auto.seal([torch.ones(3), None]) is None  # type: ignore[list-item]


@pytest.mark.skipif(not native.AVAILABLE, reason="the extension is not built")
def test_many_places_that_hash_alike() -> None:
    places = (torch.arange(3000) % 1000) * (1 << 40)
    sparse = _coo(places[None], torch.ones(3000, 2), (1 << 52, 2))
    rows = native.summed_rows(sparse)
    assert rows is not None
    assert torch.equal(rows, torch.full((1000, 2), 3.0, dtype=torch.float64))
