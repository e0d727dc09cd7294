"""Equinox and Flax models need nothing special: their parameters are pytrees."""

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import steadygrad.jax as sg

X = np.random.default_rng(0).standard_normal((16, 3)).astype(np.float32)
Y = X @ np.array([[1.0], [-2.0], [3.0]], np.float32)


def names(opt_state):
    (state,) = sg.clip_states(opt_state)
    return [next(iter(entry)) for entry in state.names]


def test_equinox():
    model = eqx.nn.MLP(3, 1, 8, 1, key=jax.random.key(0))
    tx = sg.guard(optax.adam(0.05), clip="norm:0.5")
    state = tx.init(eqx.filter(model, eqx.is_inexact_array))

    @eqx.filter_jit
    def step(model, state, x):
        def loss(model):
            return jnp.mean((jax.vmap(model)(x) - Y) ** 2)

        value, grads = eqx.filter_value_and_grad(loss)(model)
        updates, state = tx.update(grads, state, eqx.filter(model, eqx.is_inexact_array))
        return eqx.apply_updates(model, updates), state, value

    losses = []
    for _ in range(30):
        model, state, value = step(model, state, X)
        losses.append(float(value))
    assert losses[-1] < losses[0] / 2
    assert int(state.clip.action) in (0, 1)
    before = model
    model, state, _ = step(model, state, X * np.nan)
    assert int(state.clip.action) == 2
    assert eqx.tree_equal(model, before)
    assert "layers/0/weight" in names(state)


def test_flax_linen():
    model = nn.Dense(1)
    params = model.init(jax.random.key(0), X)
    tx = sg.guard(optax.sgd(0.1), clip="norm:0.5")
    state = tx.init(params)

    @jax.jit
    def step(params, state):
        loss = lambda p: jnp.mean((model.apply(p, X) - Y) ** 2)  # noqa: E731
        value, grads = jax.value_and_grad(loss)(params)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state, value

    losses = []
    for _ in range(30):
        params, state, value = step(params, state)
        losses.append(float(value))
    assert losses[-1] < losses[0] / 2
    assert names(state) == ["params/bias", "params/kernel"]


def test_flax_nnx():
    model = nnx.Linear(3, 1, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, sg.guard(optax.sgd(0.1), clip="norm:0.5"), wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer):
        value, grads = nnx.value_and_grad(lambda m: jnp.mean((m(X) - Y) ** 2))(model)
        optimizer.update(model, grads)
        return value

    losses = [float(step(model, optimizer)) for _ in range(30)]
    assert losses[-1] < losses[0] / 2
    (figures,) = sg.clip_states(nnx.as_pure(optimizer.opt_state))
    assert int(figures.step) == 30
