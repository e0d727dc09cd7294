"""torch's drop-ins and attach against the oracle: dtype x layout x p, clipping and not."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path

import numpy as np
import pytest
import torch

import steadygrad.torch as sg

_path = Path(__file__).with_name("test_kernel_forms.py")
_spec = importlib.util.spec_from_file_location("kernel_forms", _path)
forms = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(forms)

LAYOUTS = [name for name in forms.LAYOUTS if name != "empty"]


def by_drop_in(params, max_norm, p):
    return sg.clip_grad_norm_(params, max_norm, norm_type=p).item()


def by_attach(params, max_norm, p):
    optimizer = torch.optim.SGD(params, lr=0.0)
    with sg.attach(optimizer, clip=f"norm:{max_norm!r},p={p}") as steady:
        optimizer.step()
        return steady.last.norm


def parameter(grad):
    weight = torch.nn.Parameter(torch.zeros(grad.shape, dtype=grad.dtype))
    weight.grad = grad
    return weight


@pytest.mark.parametrize("clip", [by_drop_in, by_attach])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", forms.DTYPES, ids=str)
def test_the_norm_after_clipping_is_the_threshold(dtype, layout, clip):
    eps = torch.finfo(dtype).eps
    for p in forms.NORM_TYPES:
        params = [parameter(forms.make_gradient(dtype, layout, seed)) for seed in (0, 1)]
        before = [forms.magnitudes(weight.grad) for weight in params]
        norm = forms.oracle_norm(np.concatenate(before), p)
        found = clip(params, float(norm / 2), p)
        assert found == pytest.approx(norm, rel=1e-12)
        after = np.concatenate([forms.magnitudes(weight.grad) for weight in params])
        # every element is rounded by half a unit in the last place, the norm itself by 1e-12
        assert forms.oracle_norm(after, p) == pytest.approx(norm / 2, rel=eps + 1e-12)
        assert not np.array_equal(np.concatenate(before), after)


@pytest.mark.parametrize("clip", [by_drop_in, by_attach])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", forms.DTYPES, ids=str)
def test_at_the_threshold_no_bit_changes(dtype, layout, clip):
    weight = parameter(forms.make_gradient(dtype, layout))
    norm = sg.get_total_norm([weight.grad]).item()
    before = forms.magnitudes(weight.grad)
    assert clip([weight], norm, 2.0) == norm
    assert np.array_equal(forms.magnitudes(weight.grad), before)
    assert clip([weight], math.nextafter(norm, 0) * (1 - 1e-15), 2.0) == norm


@pytest.mark.parametrize("clip", [by_drop_in, by_attach])
@pytest.mark.parametrize("dtype", forms.DTYPES, ids=str)
@pytest.mark.parametrize("bad", [math.inf, math.nan])
def test_what_is_not_finite_reaches_nothing(dtype, bad, clip):
    params = [parameter(forms.make_gradient(dtype, "contiguous", seed)) for seed in (0, 1)]
    params[0].grad[0, 0, 0, 0] = bad
    before = [weight.grad.clone() for weight in params]
    norm = clip(params, 1e-3, 2.0)
    assert math.isnan(norm) if math.isnan(bad) else norm == math.inf
    for weight, kept in zip(params, before, strict=True):
        assert torch.equal(torch.nan_to_num(weight.grad), torch.nan_to_num(kept))
        assert not weight.detach().abs().any()
