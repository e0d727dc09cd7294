"""Methods that change single elements, against the papers' formulas and optax's code."""

from __future__ import annotations

from typing import Any

import array_api_compat.torch as torch_namespace
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

from steadygrad.errors import UsageError
from steadygrad.policies import AGC, SPAM, ClipValue, UpdateRMSClip
from steadygrad.policies.methods.agc import unit_axes

SHAPES = [(), (7,), (1, 7), (6, 5), (4, 3, 2), (5, 3, 2, 2)]


def pair(shape: tuple[int, ...], scale: float = 1.0) -> tuple[Any, Any]:
    rng = np.random.default_rng(len(shape))
    weight, grad = rng.normal(size=shape), rng.normal(size=shape) * scale
    return np.asarray(weight), np.asarray(grad)


def agc_reference(grad: Any, weight: Any, clip: float, eps: float) -> Any:
    """Equation 3 of the paper, unit by unit, a unit being one row of the first axis."""
    units = [...] if grad.ndim <= 1 else list(range(grad.shape[0]))
    clipped = grad.copy()
    for unit in units:
        g, w = np.linalg.norm(grad[unit]), max(np.linalg.norm(weight[unit]), eps)
        if g / w > clip:
            clipped[unit] = clip * (w / g) * grad[unit]
    return clipped


@pytest.mark.parametrize("shape", SHAPES)
def test_agc_by_rows(shape: tuple[int, ...]) -> None:
    weight, grad = pair(shape)
    got = AGC(0.3).transform(np, grad, weight=weight)
    np.testing.assert_allclose(got, agc_reference(grad, weight, 0.3, 1e-3), rtol=1e-14)
    assert not np.array_equal(got, grad)


@pytest.mark.parametrize("shape", [*SHAPES[1:], (2, 3, 2, 3, 4)])
def test_agc_along_the_axes_of_optax(shape: tuple[int, ...]) -> None:
    weight, grad = pair(shape)
    clip = optax.adaptive_grad_clip(0.3)
    expected, _ = clip.update(jnp.asarray(grad), clip.init(None), jnp.asarray(weight))
    got = AGC(0.3, axes="optax").transform(np, grad, weight=weight)
    np.testing.assert_allclose(got, expected, rtol=1e-6)  # optax computes in float32 here
    if len(shape) <= 4:
        paper = AGC(0.3, axes="paper").transform(np, grad, weight=weight)
        np.testing.assert_array_equal(paper, got)


def test_agc_refuses_what_the_paper_does_not_define() -> None:
    with pytest.raises(UsageError, match="axes=timm"):
        unit_axes("paper", (2, 2, 2, 2, 2))
    assert unit_axes("timm", (2, 2, 2, 2, 2)) == (1, 2, 3, 4)


def test_agc_keeps_small_gradients_to_the_bit_and_moves_zero_weights() -> None:
    weight, grad = pair((6, 5), 1e-4)
    np.testing.assert_array_equal(AGC(0.3).transform(np, grad, weight=weight), grad)
    moved = AGC(0.01).transform(np, np.ones((2, 3)), weight=np.zeros((2, 3)))
    np.testing.assert_allclose(np.linalg.norm(moved, axis=1), 1e-5, rtol=1e-14)


def test_agc_holds_for_norms_beyond_float_squares() -> None:
    grad = np.full((2, 3), 1e200)
    got = AGC(0.01).transform(np, grad, weight=np.ones((2, 3)))
    np.testing.assert_allclose(np.linalg.norm(got, axis=1), 0.01 * np.sqrt(3), rtol=1e-14)


def test_agc_exempts_by_pattern(stats: Any) -> None:
    policy = AGC(0.01, exempt="head.*|*.bias")
    assert policy.for_tensor("head.weight").spec() == "none"
    assert policy.for_tensor("rnn.bias").spec() == "none"
    assert policy.for_tensor("rnn.weight") is policy
    touched = policy.touches(np, stats(np, np.array([1.0, 1.0, 1.0])))
    assert touched.tolist() == [True, True, False]
    assert not policy.touches(np, stats(np, np.array([1e-6, 1e-6, 1e-6]))).any()


def test_half_precision_is_rounded_once() -> None:
    weight, grad = (torch.tensor(x, dtype=torch.bfloat16) for x in pair((6, 5)))
    got = AGC(0.3).transform(torch_namespace, grad, weight=weight)
    exact = agc_reference(grad.double().numpy(), weight.double().numpy(), 0.3, 1e-3)
    assert got.dtype == torch.bfloat16
    # float32's own error can turn one rounding in 2**15
    wrong = (got.double() - torch.tensor(exact).bfloat16().double()).abs().numpy()
    assert (wrong <= np.abs(exact) * 2.0**-8).all()
    assert (wrong > 0).mean() < 0.05


def test_spam() -> None:
    rng = np.random.default_rng(3)
    grad, v = rng.normal(size=500) * 100, rng.gamma(1.0, size=500)
    v[:50] = 0.0
    got = SPAM(theta=4000.0).transform(np, grad, second_moment=v, step=20)
    spike = (grad**2 > 4000 * v) & (v > 0)
    expected = np.where(spike, np.sign(grad) * np.sqrt(4000 * v), grad)
    np.testing.assert_allclose(got, expected, rtol=1e-14)
    assert 10 < spike.sum() < 450
    np.testing.assert_array_equal(got[~spike], grad[~spike])


def test_spam_waits_for_the_second_moment() -> None:
    grad, v = np.array([1e9]), np.array([1.0])
    assert SPAM().transform(np, grad, second_moment=None, step=None) is grad
    np.testing.assert_array_equal(SPAM().transform(np, grad, second_moment=v, step=19), grad)
    assert SPAM().transform(np, grad, second_moment=v, step=20) < 100


@pytest.mark.parametrize("step", [1, 5, 1000])
def test_update_rms_is_the_figure_of_stable_adamw(step: int) -> None:
    rng = np.random.default_rng(step)
    history = rng.normal(size=(step, 40))
    v = np.zeros(40)
    for g in history:
        v = 0.999 * v + 0.001 * g**2
    grad = rng.normal(size=40) * 6
    decay = 0.999 * (1 - 0.999**step) / (1 - 0.999 ** (step + 1))
    u = decay * (v / (1 - 0.999**step)) + (1 - decay) * grad**2
    rms = np.sqrt(np.mean(grad**2 / np.maximum(u, 1e-16)))
    assert rms > 1
    got = UpdateRMSClip().transform(np, grad, second_moment=v, step=step)
    np.testing.assert_allclose(got, grad / rms, rtol=1e-12)


def test_update_rms_leaves_a_steady_gradient_alone() -> None:
    grad = np.full(8, 0.5)
    v = np.full(8, 0.25) * (1 - 0.999**50)
    got = UpdateRMSClip(limit=1.0 + 1e-12).transform(np, grad, second_moment=v, step=50)
    np.testing.assert_array_equal(got, grad)
    assert UpdateRMSClip().transform(np, grad, second_moment=None, step=None) is grad


def test_update_rms_holds_beyond_float_squares() -> None:
    got = UpdateRMSClip().transform(
        np, np.array([1e200]), second_moment=np.array([1.0]), step=10_000
    )
    assert np.isfinite(got).all()
    assert 0 < got[0] < 1e200


def test_clip_value() -> None:
    rng = np.random.default_rng(0)
    grad = rng.normal(size=(5, 6))
    got = ClipValue(0.7).transform(np, grad)
    np.testing.assert_array_equal(got, np.minimum(np.maximum(grad, -0.7), 0.7))
    assert (got != grad).any()
