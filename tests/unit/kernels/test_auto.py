"""The form that picks: lists with tensors that C does not serve."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from steadygrad.kernels import auto, native, reference


def _sparse(seed: int) -> torch.Tensor:
    """A sparse tensor with duplicate entries, some of which cancel."""
    generator = torch.Generator().manual_seed(seed)
    places = torch.randint(0, 6, (1, 40), generator=generator)
    values = torch.randn(40, 3, generator=generator)
    values[0], places[0, 0] = 1e7, 5
    values[1], places[0, 1] = -1e7, 5
    return torch.sparse_coo_tensor(places, values, (9, 3), check_invariants=True)


@pytest.mark.skipif(not native.AVAILABLE, reason="the extension is not built")
@pytest.mark.parametrize("p", [1.0, 2.0, float("inf")])
def test_sparse_gradients_take_one_call_of_c_and_no_refusal(
    p: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensors = [_sparse(0), torch.arange(5.0), _sparse(1).coalesce()]
    calls: list[int] = []
    try_read = native.try_read

    def counted(*args: object) -> object:
        calls.append(1)
        return try_read(*args)  # type: ignore[arg-type]

    auto.read(tensors, p)  # this process has met them now
    monkeypatch.setattr(native, "try_read", counted)
    figures, oracle = auto.read(tensors, p), reference.read(tensors, p)
    assert len(calls) == 1
    # in which order entries of one place are added up may differ: 1e7 in float64 is off by 1e-9
    np.testing.assert_allclose(figures.norms, oracle.norms, rtol=1e-8)
    np.testing.assert_allclose(figures.max_abs, oracle.max_abs, rtol=1e-8)
    np.testing.assert_array_equal(figures.zeros, oracle.zeros)
    np.testing.assert_array_equal(figures.nonfinite, oracle.nonfinite)
