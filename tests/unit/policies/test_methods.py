"""What every method owes: broken steps leave no mark, states stay finite and resume."""

from __future__ import annotations

from typing import Any

import array_api_compat.torch as torch_namespace
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from steadygrad.policies import examples, parse

SPECS = [
    *examples(),
    "norm-schedule:5.0,to=1.0,over=50",
    "zclip",
    "skip",
    "skip+auto",
    "skip+tensor-norm:1.0+value:0.1",
    "{embedding.*: none, head.*: adagc, *: zclip}",
]


def equal(a: dict[str, Any], b: dict[str, Any]) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize("spec", SPECS)
def test_broken_steps_leave_no_mark(trace: Any, spiky: Any, spec: str) -> None:
    broken = np.insert(spiky, [0, 10, 130, 130, 230], np.nan, axis=0)
    broken[14] = [1.0, np.inf, 2.0]
    kept = np.isfinite(broken).all(axis=1)
    assert (~kept).sum() == 6
    got, expected = trace(parse(spec), broken), trace(parse(spec), broken[kept])
    np.testing.assert_array_equal(got.thresholds[kept], expected.thresholds)
    np.testing.assert_array_equal(got.coefs[kept], expected.coefs)
    np.testing.assert_array_equal(got.skips[kept], expected.skips)
    assert equal(got.states[-1], expected.states[-1])
    assert not got.skips[~kept].any()


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize(
    ("dtype", "sizes"),
    [(np.float64, (1e20, 1e200, 1e-200, 0.0)), (np.float32, (1e20, 1e38, 1e-30, 0.0))],
)
def test_every_finite_norm_leaves_a_finite_state(
    trace: Any, calm: Any, spec: str, dtype: Any, sizes: tuple[float, ...]
) -> None:
    rows = calm.copy()
    for i, size in enumerate(sizes):
        rows[30 + i] = size
        rows[60 + 15 * i : 65 + 15 * i] = size
    rows = rows[:130]
    for sequence in (rows, np.full((40, 3), sizes[1]), np.zeros((40, 3))):
        got = trace(parse(spec), sequence, dtype=dtype)
        for state in got.states:
            assert all(np.isfinite(value).all() for value in state.values())
        assert not np.isnan(got.thresholds).any()
        assert ((got.coefs >= 0) & (got.coefs <= 1)).all()


@pytest.mark.parametrize("spec", SPECS)
def test_resuming_continues_the_trajectory(trace: Any, spiky: Any, spec: str) -> None:
    whole = trace(parse(spec), spiky)
    first = trace(parse(spec), spiky[:140])
    stored = {key: np.array(value).copy() for key, value in first.states[-1].items()}
    second = trace(parse(spec), spiky[140:], state=stored)
    np.testing.assert_array_equal(whole.thresholds[140:], second.thresholds)
    np.testing.assert_array_equal(whole.coefs[140:], second.coefs)
    assert equal(whole.states[-1], second.states[-1])


@pytest.mark.parametrize("spec", SPECS)
def test_deciding_does_not_change_the_state_it_was_given(trace: Any, spiky: Any, spec: str) -> None:
    before = trace(parse(spec), spiky[:30]).states[-1]
    kept = {key: np.array(value).copy() for key, value in before.items()}
    trace(parse(spec), spiky[30:], state=before)
    assert equal(before, kept)


@pytest.mark.parametrize("spec", SPECS)
def test_torch_decides_as_numpy_does(trace: Any, spiky: Any, spec: str) -> None:
    rows = spiky[:215]
    expected = trace(parse(spec), rows)
    got = trace(parse(spec), rows, xp=torch_namespace)
    # transcendental functions differ by an ulp between the two; 215 steps add up at most so many
    rtol = 215 * 4 * np.finfo(float).eps
    np.testing.assert_allclose(got.thresholds, expected.thresholds, rtol=rtol)
    np.testing.assert_allclose(got.coefs, expected.coefs, rtol=rtol)
    np.testing.assert_array_equal(got.skips, expected.skips)


@pytest.mark.parametrize("spec", ["zclip:max_norm=inf", "auto", "skip", "adagc", "autoclip:90"])
def test_one_spike_does_not_mask_the_next(trace: Any, calm: Any, spec: str) -> None:
    rows = calm * np.exp(-0.6)
    rows[200] *= 1e4
    rows[203] *= 20
    got = trace(parse(spec), rows)
    acted = got.skips | (got.coefs[:, 0] < 0.5)
    assert acted[200]
    assert acted[203]
    undisturbed = np.delete(rows, 200, axis=0)
    width = trace(parse(spec), undisturbed).thresholds[-1]
    # one entry more moves a quartile by a rank, and Auto's threshold by some 4 times that
    assert got.thresholds[-1] == pytest.approx(width, rel=0.1)


@pytest.mark.parametrize("spec", ["zclip", "autoclip:10", "adagc", "skip+auto"])
def test_compiled_jax_decides_as_numpy_does(trace: Any, stats: Any, spiky: Any, spec: str) -> None:
    rows, policy = spiky[:215].astype(np.float32), parse(spec)
    state = policy.init(jnp, ("a", "b", "c"), jnp.float32, jnp.int32)

    @jax.jit
    def step(state: Any, norms: Any) -> Any:
        state, decision = policy.decide(jnp, state, stats(jnp, norms))
        return state, decision.threshold, decision.coef * jnp.ones(3), decision.skip

    expected = trace(policy, rows.astype(np.float64))
    # a dozen float32 operations a step; means and EMAs carry the error on, they do not add it up
    rtol = 64 * float(np.finfo(np.float32).eps)
    for i, row in enumerate(rows):
        state, threshold, coef, skip = step(state, row)
        np.testing.assert_allclose(coef, expected.coefs[i], rtol=rtol)
        np.testing.assert_allclose(threshold, expected.thresholds[i], rtol=rtol)
        assert bool(skip) == expected.skips[i]
