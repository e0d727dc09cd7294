"""clip and guard inside optax: figures, whole skips, and the transformations around them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import steadygrad.jax as sg
from steadygrad.errors import NoGradientsWarning, SpecError, UsageError
from steadygrad.jax._x64 import wide

PARAMS = {"w": jnp.array([1.0, -2.0, 3.0]), "b": jnp.zeros(2)}
GRADS = {"w": jnp.array([3.0, 0.0, 0.0]), "b": jnp.array([0.0, 4.0])}
BAD = {"w": jnp.array([jnp.nan, 0.0, jnp.inf]), "b": jnp.array([0.0, 4.0])}


def same(a, b):
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(np.array_equal(x, y) for x, y in pairs)


def test_figures_in_a_chain():
    tx = optax.chain(sg.clip("norm:1.0", details=True), optax.sgd(1.0))
    updates, state = jax.jit(tx.update)(GRADS, tx.init(PARAMS), PARAMS)
    seen = state[0]
    np.testing.assert_array_equal(updates["b"], np.array([0, -0.8], np.float32))
    assert (float(seen.norm), float(seen.threshold), float(seen.cosine)) == (5.0, 1.0, 1.0)
    assert float(seen.coef) == pytest.approx(0.2, rel=1e-7)
    assert int(seen.action) == 1
    assert [next(iter(n)) for n in seen.names] == ["b", "w"]
    assert seen.leaf_norms.tolist() == [4.0, 3.0]
    assert seen.leaf_max_abs.tolist() == [4.0, 3.0]
    assert seen.leaf_zeros.tolist() == [1, 2]
    assert float(optax.tree.get(state, "norm")) == 5.0
    assert all(leaf.dtype != jnp.float64 for leaf in jax.tree.leaves(state))


def test_clip_hands_on_zeros_and_counts():
    tx = sg.clip("norm:1.0")
    updates, state = jax.jit(tx.update)(BAD, tx.init(PARAMS))
    assert not any(leaf.any() for leaf in jax.tree.leaves(updates))
    assert int(state.action) == 2
    assert int(state.nonfinite) == 2
    assert state.leaf_nonfinite.tolist() == [0, 2]
    assert np.isnan(state.norm)


def test_nothing_changes_below_and_when_observing():
    for spec in ("norm:5.0", "none"):
        tx = sg.clip(spec)
        updates, state = jax.jit(tx.update)(GRADS, tx.init(PARAMS))
        assert same(updates, GRADS)
        assert int(state.action) == 0
    tx = sg.clip("none")
    np.testing.assert_array_equal(tx.update(BAD, tx.init(PARAMS))[0]["w"], BAD["w"])


def test_guard_skips_whole_and_goes_on():
    tx = sg.guard(optax.adamw(0.1), clip="zclip:warmup=2")
    update = jax.jit(tx.update)
    _, before = update(GRADS, tx.init(PARAMS), PARAMS)
    updates, after = update(BAD, before, PARAMS)
    assert not any(leaf.any() for leaf in jax.tree.leaves(updates))
    assert same(after.inner, before.inner)
    assert same(after.clip.policy, before.clip.policy)
    assert int(after.clip.step) == 2
    assert int(after.clip.action) == 2
    resumed, _ = update(GRADS, after, PARAMS)
    straight, _ = update(GRADS, before, PARAMS)
    assert same(resumed, straight)


def test_guard_equals_optax_when_finite():
    mine, theirs = (
        sg.guard(optax.adam(0.1), clip="norm:1.0"),
        optax.chain(optax.clip_by_global_norm(1.0), optax.adam(0.1)),
    )
    params = [PARAMS, PARAMS]
    states = [mine.init(PARAMS), theirs.init(PARAMS)]
    for step in range(5):
        grads = jax.tree.map(lambda g, by=step + 0.1: g * by, GRADS)
        for i, tx in enumerate((mine, theirs)):
            updates, states[i] = jax.jit(tx.update)(grads, states[i], params[i])
            params[i] = optax.apply_updates(params[i], updates)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), *params)


def test_zero_replaces_only_the_broken_elements():
    tx = sg.clip("norm:2.0", on_nonfinite="zero")
    updates, state = tx.update(BAD, tx.init(PARAMS))
    assert updates["b"].tolist() == [0.0, 2.0]
    assert updates["w"].tolist() == [0.0, 0.0, 0.0]
    assert int(state.nonfinite) == 2


def test_groups_weights_and_moments():
    tx = sg.clip({"b": "norm:1.0", "*": "none"})
    updates, state = tx.update(GRADS, tx.init(PARAMS))
    assert updates["b"].tolist() == [0.0, 1.0]
    assert same(updates["w"], GRADS["w"])
    assert 0 < float(state.coef) < 1
    agc = sg.clip("agc:0.01")
    clipped, _ = agc.update(GRADS, agc.init(PARAMS), PARAMS)
    assert float(jnp.linalg.norm(clipped["w"])) == pytest.approx(0.01 * np.sqrt(14), rel=1e-6)
    with pytest.raises(UsageError, match="params"):
        agc.update(GRADS, agc.init(PARAMS))
    with pytest.raises(UsageError, match="guard"):
        sg.clip("spam").update(GRADS, sg.clip("spam").init(PARAMS))
    spam = sg.guard(optax.adam(0.1), clip="spam")
    _, state = spam.update(GRADS, spam.init(PARAMS), PARAMS)
    assert int(state.inner[0].count) == 1


def test_value_changes_single_elements():
    tx = sg.clip("value:1.0")
    updates, state = jax.jit(tx.update)(GRADS, tx.init(PARAMS))
    assert updates["w"].tolist() == [1.0, 0.0, 0.0]
    assert int(state.action) == 1
    assert float(state.coef) == pytest.approx(np.sqrt(2) / 5, rel=1e-6)
    assert float(state.cosine) == pytest.approx(7 / (5 * np.sqrt(2)), rel=1e-6)


def test_multi_steps_multi_transform_and_apply_if_finite():
    several = optax.MultiSteps(
        sg.guard(optax.sgd(1.0), clip="norm:1.0"), 2, should_skip_update_fn=optax.skip_not_finite
    )
    state, params = several.init(PARAMS), PARAMS
    for grads in (GRADS, BAD, GRADS):
        updates, state = several.update(grads, state, params)
        params = optax.apply_updates(params, updates)
    assert params["b"].tolist() == pytest.approx([0.0, -0.8], rel=1e-6)
    parts = {"slow": sg.guard(optax.sgd(1.0), clip="norm:1.0"), "free": optax.sgd(1.0)}
    split = optax.multi_transform(parts, {"w": "free", "b": "slow"})
    updates, state = jax.jit(split.update)(GRADS, split.init(PARAMS), PARAMS)
    assert updates["b"].tolist() == [0.0, -1.0]
    assert updates["w"].tolist() == [-3.0, 0.0, 0.0]
    assert [s.leaf_norms.tolist() for s in sg.clip_states(state)] == [[4.0]]
    wrapped = optax.apply_if_finite(optax.chain(sg.clip("norm:1.0"), optax.sgd(1.0)), 3)
    updates, state = wrapped.update(BAD, wrapped.init(PARAMS), PARAMS)
    assert not any(leaf.any() for leaf in jax.tree.leaves(updates))


def test_scan_donation_vmap_and_grad():
    tx = sg.guard(optax.adam(0.1), clip="adagc:warmup=2")

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def train(params, state, scales):
        def body(carry, scale):
            params, state = carry
            grads = jax.tree.map(lambda g: g * scale, GRADS)
            updates, state = tx.update(grads, state, params)
            return (optax.apply_updates(params, updates), state), state.clip.action

        return jax.lax.scan(body, (params, state), scales)

    start = jax.tree.map(jnp.copy, PARAMS)
    (_, _), actions = train(start, tx.init(PARAMS), jnp.array([1.0, 0.1, jnp.nan, 50.0, 1e-3]))
    assert actions.tolist() == [1, 0, 2, 1, 0]
    simple = sg.clip("norm:1.0")
    lanes = jnp.array([1.0, 1e20, jnp.nan])

    def act(scale):
        scaled = {"w": scale * GRADS["w"], "b": GRADS["b"]}
        return simple.update(scaled, simple.init(PARAMS))[1].action

    assert jax.jit(jax.vmap(act))(lanes).tolist() == [1, 1, 2]
    assert jax.vmap(act)(lanes).tolist() == [1, 1, 2]

    def meta(scale):
        updates, _ = simple.update(jax.tree.map(lambda g: g * scale, GRADS), simple.init(PARAMS))
        return updates["b"][1]

    slope = jax.jit(jax.grad(meta))
    assert float(slope(0.1)) == pytest.approx(4.0)
    assert float(slope(2.0)) == pytest.approx(0.0, abs=1e-6)


def test_derivatives_without_jit():
    tx = sg.clip("norm:1.0")  # one small leaf: each primitive is compiled apart
    state = tx.init([jnp.zeros(2)])
    slope = jax.grad(lambda x: tx.update([x], state)[0][0][1])(jnp.array([3.0, 4.0]))
    np.testing.assert_allclose(slope, np.array([-12, 9]) / 125, rtol=1e-6)


def test_integer_leaves_pass_and_wrong_trees_are_refused():
    tx = sg.clip("norm:1.0")
    mixed = {"n": jnp.arange(2), "w": jnp.array([3.0, 4.0])}
    updates, state = tx.update(mixed, tx.init(mixed))
    assert updates["n"].tolist() == [0, 1]
    assert state.leaf_norms.shape == (1,)
    with pytest.raises(UsageError, match="init"):
        tx.update(GRADS, state)
    with pytest.raises(UsageError, match="cannot raise"):
        sg.clip("norm:1.0", on_nonfinite="raise")
    with pytest.raises(SpecError, match="norm"):
        sg.clip("nrom:1.0")
    for build in (sg.clip, lambda spec: sg.guard(optax.sgd(1.0), clip=spec)):
        with pytest.raises(SpecError, match=r"@Muon.*multi_transform"):
            build("{@Muon: none, *: norm:1.0}")
        with pytest.warns(NoGradientsWarning, match=r"'vv\*' matches none of the 1 .*such as 'w'"):
            build({"vv*": "norm:1.0", "w": "norm:2.0"}).init({"w": jnp.ones(2)})


@pytest.mark.parametrize("mode", ["skip", "zero"])
def test_finite_gradients_whose_norm_float64_cannot_hold_are_dropped(mode: str) -> None:
    weights = {"w": jnp.zeros(4)}
    with wide():
        huge = {"w": jnp.full(4, 1.7e308, jnp.float64)}
        tx = sg.guard(optax.sgd(1.0), clip="norm:1.0", on_nonfinite=mode)
        updates, state = jax.jit(tx.update)(huge, tx.init(weights), weights)
        assert (updates["w"] == 0).all()
    assert int(state.clip.action) == 2
    assert int(state.clip.nonfinite) == 0


def test_nothing_to_clip_and_nothing_to_guard_are_told():
    for tx in (sg.clip("norm:1.0"), sg.guard(optax.sgd(0.1))):
        for nothing in ({}, {"n": jnp.arange(3)}):
            with pytest.warns(
                NoGradientsWarning, match=r"init was given .* type tx\.init\(params\)"
            ):
                tx.init(nothing)
    with pytest.warns(NoGradientsWarning, match=r"pattern 'x' of axis_name matches none.*'w'"):
        sg.clip("norm:1.0", axis_name={"x": "d", "w": "d"}).init({"w": jnp.ones(2)})
    for inner in (None, optax.sgd):
        with pytest.raises(UsageError, match=r"type for example steadygrad\.jax\.guard"):
            sg.guard(inner)
