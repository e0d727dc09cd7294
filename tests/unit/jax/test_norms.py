"""Norms against float64 NumPy, over magnitudes and dtypes that float32 squares cannot hold."""

import functools

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest

import steadygrad.jax as sg
from steadygrad.jax import native
from steadygrad.jax._x64 import narrow, wide
from steadygrad.jax.engine import JaxEngine
from steadygrad.jax.native import SMALL
from steadygrad.jax.norms import leaf_figures, leaf_norms, plain_figures, plain_norms

RNG = np.random.default_rng(0)
LARGE = SMALL + 5


def oracle(leaf, p):
    size = np.abs(np.asarray(leaf, np.complex128 if np.iscomplexobj(leaf) else np.float64)).ravel()
    if np.isnan(size).any():
        return np.nan
    top = size.max(initial=0)
    if np.isinf(top) or top == 0 or p == np.inf:
        return top
    return top * np.sum((size / top) ** p) ** (1 / p)


def leaves():
    def normal(n, scale, dtype=np.float32):
        drawn = RNG.standard_normal(n) * scale
        return (np.sign(drawn) * np.maximum(np.abs(drawn), 1.2e-38)).astype(dtype)

    found = [normal(n, scale) for n in (3, LARGE) for scale in (1.0, 1e-22, 1e-37, 1e20, 2e37)]
    found += [normal(LARGE, 300.0, np.float16), normal(7, 300.0, np.float16)]
    found += [np.ones(1000, ml_dtypes.bfloat16), np.ones(LARGE, ml_dtypes.bfloat16)]
    found += [np.zeros(LARGE, np.float32), np.zeros((0, 4), np.float32), np.float32(-2.0)]
    bad = normal(LARGE, 1.0)
    bad[5], bad[9] = np.inf, -np.inf
    worse = bad.copy()
    worse[6] = np.nan
    small = np.array([1.0, np.nan], np.float32)
    return [*found, bad, worse, small, (normal(9, 1.0) + 1j * normal(9, 1.0)).astype(np.complex64)]


def test_the_c_core_serves_on_one_cpu():
    assert native.serves([jnp.ones(2)])
    assert not native.serves([jnp.ones(2), jnp.ones(2, jnp.float8_e5m2)])
    assert not native.serves([])


@pytest.mark.parametrize("form", [leaf_norms, plain_norms], ids=["native", "plain"])
@pytest.mark.parametrize("p", [2.0, 1.0, 0.5, 3.0, np.inf])
def test_leaf_norms_match_float64(p, form):
    arrays = leaves()

    @jax.jit
    def norms(xs):
        with wide():
            found, nonfinite = form(xs, p)
            return jnp.log(found), nonfinite  # the log fits float32 whatever the norm

    with wide():
        logs, nonfinite = norms([jnp.asarray(a) for a in arrays])
    with np.errstate(divide="ignore"):
        want = np.log([oracle(a, p) for a in arrays])
    np.testing.assert_allclose(np.asarray(logs), want, rtol=0, atol=1e-6)
    expected = [int((~np.isfinite(np.asarray(a, np.complex128))).sum()) for a in arrays]
    assert nonfinite.tolist() == expected


SINGLY = functools.partial(leaf_figures, one_by_one=True)


@pytest.mark.parametrize(
    "form", [leaf_figures, SINGLY, plain_figures], ids=["native", "singly", "plain"]
)
def test_extremes_and_zeros(form):
    arrays = [jnp.asarray(a) for a in leaves()]
    with wide():
        _, largest, nonfinite, zeros = jax.jit(lambda xs: form(xs, 2.0))(arrays)
    for i, array in enumerate(arrays):
        size = np.abs(np.asarray(array, np.complex128))
        finite = size[np.isfinite(size)]
        assert float(largest[i]) == pytest.approx(finite.max(initial=0), rel=1e-6), i
        assert int(zeros[i]) == int((size == 0).sum()), i
        assert int(nonfinite[i]) == size.size - finite.size, i


@pytest.mark.parametrize("one_each", [False, True])
def test_scaling_together_is_scaling_one_by_one(monkeypatch, one_each):
    arrays = [jnp.asarray(a) for a in leaves()]
    with wide():
        coef = jnp.asarray(np.linspace(0, 1.0, len(arrays)) if one_each else 0.37)
        together = jax.jit(JaxEngine().scaled)(arrays, coef)
        monkeypatch.setattr(native, "serves", lambda leaves: False)
        apart = jax.jit(lambda xs, by: JaxEngine().scaled(xs, by))(arrays, coef)
    for a, b in zip(together, apart, strict=True):
        a, b = np.asarray(a), np.asarray(b)
        flushed = (np.abs(a) < 1.2e-38) & (b == 0)  # XLA has no subnormals
        np.testing.assert_array_equal(np.where(flushed, 0, a), b)
    assert not np.array_equal(together[0], arrays[0])
    if one_each:
        np.testing.assert_array_equal(together[-1], arrays[-1])


def test_sixteen_bit_rounding_happens_once():
    tie = 1 + 2.0**-8  # between two bfloat16
    with wide():
        x = jnp.asarray([tie * (1 + 2.0**-40), tie * (1 - 2.0**-40), -tie * (1 + 2.0**-40), np.inf])
        got = np.asarray(jax.jit(lambda v: narrow(v, jnp.bfloat16))(x), np.float64)
    np.testing.assert_array_equal(got, [1 + 2.0**-7, 1.0, -1 - 2.0**-7, np.inf])


def test_global_norm_where_optax_is_wrong():
    half = [jnp.ones(1000, jnp.bfloat16) for _ in range(64)]
    assert float(sg.global_norm(half)) == pytest.approx(np.sqrt(64_000), rel=1e-7)
    assert float(optax.tree.norm(half)) != pytest.approx(np.sqrt(64_000), rel=1e-3)
    assert float(sg.global_norm([jnp.array([3e20, 4e20])])) == pytest.approx(5e20, rel=1e-7)


def test_global_norm_under_vmap_and_scan():
    batch = jnp.asarray([[3e20, 4e20], [3e-20, 4e-20], [jnp.nan, 1.0], [3.0, 4.0]])
    got = np.asarray(jax.jit(jax.vmap(lambda row: sg.global_norm([row])))(batch))
    np.testing.assert_allclose(got, [5e20, 5e-20, np.nan, 5.0], rtol=1e-6)
    _, scanned = jax.lax.scan(lambda c, row: (c, sg.global_norm([row])), 0, batch)
    np.testing.assert_array_equal(np.asarray(scanned), got)


def test_measure_counts():
    stats = sg.measure({"b": jnp.array([0.0, 2.0, jnp.nan]), "a": jnp.zeros(LARGE)})
    assert stats.names == ("a", "b")
    assert stats.zeros.tolist() == [LARGE, 1]
    assert stats.nonfinite.tolist() == [0, 1]
    assert stats.max_abs.tolist() == [0.0, 2.0]
    assert stats.sizes == (LARGE, 3)


def test_measuring_nothing_warns():
    with pytest.warns(UserWarning, match=r"jax\.grad"):
        sg.measure({})


def test_a_large_gradient_is_read_before_the_next_is_made():
    def loss(weights):
        h = jnp.ones((2, 160))
        for weight in weights:
            h = jnp.tanh(h @ weight)
        return h.sum()

    def step(weights):
        grads = jax.grad(loss)(weights)
        with wide():
            figures = SINGLY([abs(g) for g in grads])
        return [w - 0.1 * g for w, g in zip(weights, grads, strict=True)], figures

    weights = [jax.ShapeDtypeStruct((160, 160), np.float32)] * 6
    compiled = jax.jit(step).lower(weights).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 2 * 4 * 160 * 160
