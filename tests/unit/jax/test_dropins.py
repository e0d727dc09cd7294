"""optax's clipping functions: what optax's own tests hold, and where ours differ on purpose.

They differ, where optax pins a fault, in this: at the norm itself nothing changes (optax
divides and multiplies again); all-zero updates under a threshold of 0 stay zero (optax: NaN);
a NaN or inf norm leaves updates as they are (optax spreads NaN); bfloat16 is summed exactly.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import steadygrad.jax as sg
from steadygrad.errors import NoGradientsWarning, UsageError

TREE = {"a": jnp.arange(6.0).reshape(2, 3), "b": jnp.arange(1.0, 4.0)}


def apply(tx, updates, params=None):
    return jax.jit(lambda u, p: tx.update(u, tx.init(p), p)[0])(updates, params)


@pytest.mark.parametrize("divisor", [0.5, 1.0, 2.0, 10.0])
def test_global_norm_is_brought_to_the_threshold(divisor):
    norm = float(sg.global_norm(TREE))
    clipped = apply(sg.clip_by_global_norm(norm / divisor), TREE)
    want = min(norm, norm / divisor)
    assert float(sg.global_norm(clipped)) == pytest.approx(want, rel=1e-6)
    ours = optax.clip_by_global_norm(norm / divisor)
    for mine, theirs in zip(
        jax.tree.leaves(clipped), jax.tree.leaves(apply(ours, TREE)), strict=True
    ):
        np.testing.assert_allclose(mine, theirs, rtol=1e-6)
    again = apply(sg.clip_by_global_norm(float(sg.global_norm(clipped)) * (1 + 1e-6)), clipped)
    assert jax.tree.all(jax.tree.map(lambda x, y: bool((x == y).all()), again, clipped))


def test_zeros_and_nonfinite_norms_are_left_alone():
    zeros = {"w": jnp.zeros(3)}
    assert apply(sg.clip_by_global_norm(0.0), zeros)["w"].tolist() == [0, 0, 0]
    assert np.isnan(apply(optax.clip_by_global_norm(0.0), zeros)["w"]).all()
    broken = {"w": jnp.array([1.0, jnp.inf, -2.0])}
    assert apply(sg.clip_by_global_norm(1.0), broken)["w"].tolist() == [1.0, np.inf, -2.0]


def test_block_rms_against_optax():
    for threshold in (0.5, 1.0, 100.0):
        mine = apply(sg.clip_by_block_rms(threshold), TREE)
        theirs = apply(optax.clip_by_block_rms(threshold), TREE)
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6), mine, theirs)
    roots = jax.tree.map(
        lambda x: float(jnp.sqrt(jnp.mean(x**2))), apply(sg.clip_by_block_rms(0.5), TREE)
    )
    assert roots == pytest.approx({"a": 0.5, "b": 0.5}, rel=1e-6)


@pytest.mark.parametrize(
    "shape", [(), (1, 4), (5,), (3, 4), (2, 3, 4), (2, 2, 3, 4), (2, 2, 2, 3, 4)]
)
def test_adaptive_grad_clip_against_optax(shape):
    rng = np.random.default_rng(1)
    update = {"w": jnp.asarray(rng.standard_normal(shape) * 5, jnp.float32)}
    weight = {"w": jnp.asarray(rng.standard_normal(shape), jnp.float32)}
    mine = apply(sg.adaptive_grad_clip(0.1), update, weight)["w"]
    theirs = apply(optax.adaptive_grad_clip(0.1), update, weight)["w"]
    np.testing.assert_allclose(mine, theirs, rtol=2e-6)
    assert not np.array_equal(mine, update["w"])


def test_adaptive_grad_clip_says_what_it_needs():
    tx = sg.adaptive_grad_clip(0.1)
    with pytest.raises(ValueError, match="params"):
        tx.update(TREE, tx.init(TREE))
    six = [jnp.ones((2,) * 6)]
    with pytest.raises(ValueError, match="no units"):
        tx.update(six, tx.init(six), six)
    kept = sg.adaptive_grad_clip(0.1, axis=(0, 1)).update(six, None, six)[0][0]
    assert float(kept[0, 0, 0, 0, 0, 0]) == pytest.approx(0.1, rel=1e-6)


@pytest.mark.parametrize(
    ("make", "slope"),
    [
        (lambda: sg.clip_by_global_norm(1.0), 3 / 30**0.5),
        (lambda: sg.clip_by_block_rms(1.0), 3 / 12.5**0.5),
        (lambda: sg.adaptive_grad_clip(0.1), 0.3),
    ],
)
def test_gradients_go_through_the_drop_ins(make, slope):
    # warnings are errors here: JAX warns where a float64 of ours leaks into its derivative
    given = {"w": jnp.array([3.0, 4.0]), "b": jnp.ones(5)}
    tx = make()

    def clipped(x):
        updates, _ = tx.update(jax.tree.map(lambda leaf: leaf * x, given), tx.init(given), given)
        return updates["w"][0] * x

    # of a jitted function the derivative is made outside, where there is no float64
    ways = (jax.grad, lambda f: jax.jit(jax.grad(f)), lambda f: jax.grad(jax.jit(f)))
    for derivative in ways:
        assert float(derivative(clipped)(2.0)) == pytest.approx(slope, rel=1e-6)


def test_gradients_go_through_a_norm():
    norm = jax.jit(lambda x: sg.global_norm([jnp.array([3.0, 4.0]) * x]))
    assert float(jax.grad(norm)(2.0)) == pytest.approx(5.0, rel=1e-6)


@pytest.mark.parametrize("value", [-1.0, float("nan"), None, "one"])
def test_a_threshold_that_would_reverse_gradients_is_refused(value):
    for make in (sg.clip_by_global_norm, sg.clip_by_block_rms, sg.adaptive_grad_clip):
        with pytest.raises(UsageError, match=r"must be a number, 0 or more.*Type \w+=1.0"):
            make(value)
    with pytest.raises(UsageError, match="eps must be"):
        sg.adaptive_grad_clip(0.1, eps=-1.0)


def test_a_traced_threshold_under_0_reverses_nothing():
    for make in (sg.clip_by_global_norm, sg.clip_by_block_rms):
        updates = jax.jit(lambda limit, make=make: make(limit).update(TREE, ())[0])(-1.0)
        assert all((leaf == 0).all() for leaf in jax.tree.leaves(updates))


@pytest.mark.parametrize("wrap", [lambda x: x, lambda x: [x], lambda x: {"w": x}])
def test_agc_clips_a_bare_array_too(wrap):
    weights, tx = wrap(jnp.ones(6)), sg.clip("agc:0.01")
    updates = jax.tree.map(lambda w: w * 100, weights)
    clipped, state = tx.update(updates, tx.init(weights), weights)
    np.testing.assert_allclose(jax.tree.leaves(clipped)[0], 0.01, rtol=1e-6)
    assert all(name for entry in state.names for name in entry)


FLOAT0 = np.zeros(3, jax.dtypes.float0)
"""What jax.grad gives for integers."""

CLIPS = {
    "clip_by_global_norm": lambda: sg.clip_by_global_norm(1.0),
    "clip_by_block_rms": lambda: sg.clip_by_block_rms(1.0),
    "adaptive_grad_clip": lambda: sg.adaptive_grad_clip(0.1),
}


@pytest.mark.parametrize("nothing", [{}, {"w": None}, {"w": FLOAT0}])
def test_no_gradients_are_told(nothing):
    for caller, make in CLIPS.items():
        tx = make()
        without = f"{caller} was given a pytree without"
        with pytest.warns(NoGradientsWarning, match=without) as warned:
            assert tx.update(nothing, tx.init(nothing), nothing)[0] == nothing
        assert warned[0].filename == __file__
    for read in (sg.measure, sg.global_norm):
        with pytest.warns(NoGradientsWarning, match=r"nothing was measured") as warned:
            read(nothing)
        assert warned[0].filename == __file__


@pytest.mark.parametrize("caller", CLIPS)
def test_leaves_that_are_no_gradients_are_refused_or_left_alone(caller):
    tx, tree = CLIPS[caller](), {"n": jnp.arange(3), "w": jnp.array([3.0, 4.0])}
    with pytest.raises(UsageError, match=rf"{caller} was given int32 values at 'n'.*astype"):
        tx.update(tree, tx.init(tree), tree)
    tree["n"] = FLOAT0
    done = tx.update(tree, tx.init(tree), tree)[0]
    assert done["n"] is FLOAT0
    assert float(sg.global_norm(done)) < 5.0 == float(sg.global_norm(tree))
    assert sg.measure(tree).names == ("w",)


@pytest.mark.parametrize("p", [float("nan"), -1.0, 0, None, "2"])
def test_a_p_that_is_no_norm_is_refused(p):
    with pytest.raises(UsageError, match=r"measure: norm_type must be .*Type norm_type=2.0"):
        sg.measure(TREE, p)
