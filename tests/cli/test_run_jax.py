"""A JAX script under `steadygrad run` computes the same bits, and its steps are on record."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import steadygrad
from steadygrad.launch.jax_script.observer import HAND_UNREAD, LEFT_UNREAD, LOSS_UNREAD
from steadygrad.runlog import Run

pytestmark = pytest.mark.timeout(600)  # all trainings compile in a set-up

TRAIN = """
import functools, hashlib, json, sys
import jax
from jax import grad, value_and_grad
import jax.numpy as jnp
import numpy as np
import optax

rng = np.random.default_rng(0)
x = jnp.asarray(rng.standard_normal((32, 8)), jnp.float32)
y = jnp.asarray(rng.standard_normal((32, 1)), jnp.float32)

def fresh():
    r = np.random.default_rng(1)
    w1, w2 = (jnp.asarray(r.standard_normal(s) * 0.4, jnp.float32) for s in ((8, 16), (16, 1)))
    return {"w1": w1, "b1": jnp.zeros(16), "w2": w2}

def loss_fn(p, x, y):
    return jnp.mean((jnp.tanh(x @ p["w1"] + p["b1"]) @ p["w2"] - y) ** 2)

def batch(t):
    return x * (1 + t % 3), y

def oracle(g):
    return float(np.sqrt(sum(np.sum(np.square(np.asarray(v, np.float64)))
                             for v in jax.tree.leaves(g))))

SEEN = {}

def train(name, tx, step, steps=6, state=None):
    params = fresh()
    state = tx.init(params) if state is None else state
    norms, losses = [], []
    for t in range(steps):
        params, state, loss, g = step(params, state, *batch(t))
        norms.append(oracle(g))
        losses.append(float(loss))
    digest = hashlib.sha256(b"".join(np.asarray(v).tobytes() for v in jax.tree.leaves(params)))
    SEEN[name] = {"norms": norms, "losses": losses, "digest": digest.hexdigest()}

def stepper(tx):
    def step(params, state, x, y):
        loss, g = value_and_grad(loss_fn)(params, x, y)
        u, state = tx.update(g, state, params)
        return optax.apply_updates(params, u), state, loss, g
    return step

def clipped(): return optax.chain(optax.clip_by_global_norm(0.5), optax.sgd(1e-2))

# jitted, buffers donated, a schedule
tx = optax.chain(optax.clip_by_global_norm(0.5), optax.adamw(optax.cosine_decay_schedule(1e-2, 9)))
train("donated", tx, jax.jit(stepper(tx), donate_argnums=(0, 1)))
# nothing compiled
tx = optax.chain(optax.clip(0.02), optax.sgd(0.1, momentum=0.9))
train("eager", tx, stepper(tx))
# the gradient compiled alone, has_aux, and clip and optimizer called one after the other
vg = jax.jit(value_and_grad(lambda p, x, y: (loss_fn(p, x, y), 0.0), has_aux=True))
first, second = optax.clip_by_global_norm(0.5), optax.sgd(1e-2)
def apart(params, state, x, y):
    (loss, _), g = vg(params, x, y)
    small, _ = first.update(g, first.init(params))
    u, state = second.update(small, state, params)
    return optax.apply_updates(params, u), state, loss, g
train("apart", second, apart)
# grad, a rate in the state, inside of lax.scan
tx = optax.inject_hyperparams(optax.sgd)(learning_rate=1e-2)
def body(carry, t):
    params, state = carry
    g = grad(loss_fn)(params, x * (1 + t % 3), y)
    u, state = tx.update(g, state, params)
    return (optax.apply_updates(params, u), state), g
whole = jax.jit(lambda carry: jax.lax.scan(body, carry, jnp.arange(6)))
(params, _), gs = whole((fresh(), tx.init(fresh())))
SEEN["scan"] = {
    "norms": [oracle(jax.tree.map(lambda v: v[t], gs)) for t in range(6)], "losses": [],
    "digest": hashlib.sha256(np.asarray(params["w1"]).tobytes()).hexdigest(),
}
# micro-batches
tx = optax.MultiSteps(clipped(), 2)
train("micro", tx, jax.jit(stepper(tx)))
tx = optax.MultiSteps(clipped(), 2).gradient_transformation()
train("micro_tx", tx, jax.jit(stepper(tx)))
tx = optax.chain(optax.clip_by_global_norm(0.5), optax.MultiSteps(
    optax.adam(1e-2), 2).gradient_transformation())
train("micro_each", tx, jax.jit(stepper(tx)))
# a clip for each of two parts, and behind one that has clipped some of them already
def part(most): return optax.chain(optax.clip_by_global_norm(most), optax.sgd(1e-2))
both = {1: part(0.03), 2: part(0.04)}
def parts(): return optax.multi_transform(both, {"w1": 1, "b1": 1, "w2": 2})
train("parts", parts(), jax.jit(stepper(parts())))
w2_alone = {"w1": False, "b1": False, "w2": True}
tx = optax.chain(optax.masked(optax.clip_by_global_norm(0.5), w2_alone), parts())
train("part twice", tx, jax.jit(stepper(tx)))
# a clip behind a transformation that leaves finite gradients as they are
tx = optax.chain(optax.zero_nans(), clipped())
train("zeroed", tx, jax.jit(stepper(tx)))
# the optimizer inside of lax.cond
tx = optax.apply_if_finite(clipped(), 5)
train("finite", tx, jax.jit(stepper(tx)))
# clips of each unit and each element, compiled with the optimizer; one behind zero_nans
tx = optax.chain(optax.adaptive_grad_clip(0.1), optax.adam(1e-2))
train("units", tx, jax.jit(stepper(tx)))
tx = optax.chain(optax.zero_nans(), optax.clip(0.02), optax.clip_by_block_rms(0.01), optax.sgd(0.1))
train("elements", tx, jax.jit(stepper(tx)))
# made anew inside of the step
train("anew", clipped(), jax.jit(lambda p, s, x, y: stepper(clipped())(p, s, x, y)))
# several devices, by two ways
tx = clipped()
def parallel(params, state, x, y):
    loss, g = value_and_grad(loss_fn)(params, x, y)
    loss, g = jax.lax.pmean((loss, g), "d")
    u, state = tx.update(g, state, params)
    return optax.apply_updates(params, u), state, loss, g
n = jax.device_count()
split = lambda a: a.reshape(n, -1, *a.shape[1:])
params = jax.tree.map(lambda v: jnp.stack([v] * n), fresh())
state = jax.tree.map(lambda v: jnp.stack([v] * n), tx.init(fresh()))
norms, losses = [], []
each = jax.pmap(parallel, axis_name="d")
for t in range(6):
    params, state, loss, g = each(params, state, *map(split, batch(t)))
    norms.append(oracle(jax.tree.map(lambda v: v[0], g)))
    losses.append(float(loss[0]))
SEEN["pmap"] = {"norms": norms, "losses": losses,
                "digest": hashlib.sha256(np.asarray(params["w1"]).tobytes()).hexdigest()}
from jax.sharding import Mesh, PartitionSpec as P
mesh = Mesh(np.array(jax.devices()), ("d",))
tx = clipped()
sharded = jax.jit(jax.shard_map(parallel, mesh=mesh, in_specs=(P(), P(), P("d"), P("d")),
                                out_specs=P(), check_vma=False))
train("shard_map", tx, sharded)
# flax and equinox
from flax.training.train_state import TrainState
ts = TrainState.create(apply_fn=None, params=fresh(), tx=clipped())
@jax.jit
def flax_step(ts, x, y):
    loss, g = jax.value_and_grad(loss_fn)(ts.params, x, y)
    return ts.apply_gradients(grads=g), loss, g
norms, losses = [], []
for t in range(6):
    ts, loss, g = flax_step(ts, *batch(t)); norms.append(oracle(g)); losses.append(float(loss))
SEEN["train_state"] = {"norms": norms, "losses": losses,
                       "digest": hashlib.sha256(np.asarray(ts.params["w1"]).tobytes()).hexdigest()}
from flax import nnx
model = nnx.Sequential(nnx.Linear(8, 16, rngs=nnx.Rngs(0)), nnx.Linear(16, 1, rngs=nnx.Rngs(1)))
optimizer = nnx.Optimizer(model, clipped(), wrt=nnx.Param)
@nnx.jit
def nnx_step(model, optimizer, x, y):
    loss, g = nnx.value_and_grad(lambda m: jnp.mean((m(x) - y) ** 2))(model)
    optimizer.update(model, g)
    return loss, g
norms, losses = [], []
for t in range(6):
    loss, g = nnx_step(model, optimizer, *batch(t))
    norms.append(oracle(g)); losses.append(float(loss))
SEEN["nnx"] = {"norms": norms, "losses": losses, "digest": hashlib.sha256(b"".join(
    np.asarray(v).tobytes() for v in jax.tree.leaves(nnx.state(model, nnx.Param)))).hexdigest()}
import equinox as eqx
model = eqx.nn.MLP(8, 1, 16, 1, key=jax.random.key(0))
tx = clipped()
state = tx.init(eqx.filter(model, eqx.is_inexact_array))
@eqx.filter_jit
def eqx_step(model, state, x, y):
    loss, g = eqx.filter_value_and_grad(lambda m: jnp.mean((jax.vmap(m)(x) - y) ** 2))(model)
    u, state = tx.update(g, state, model)  # which holds functions, too
    return eqx.apply_updates(model, u), state, loss, g
norms, losses = [], []
for t in range(6):
    model, state, loss, g = eqx_step(model, state, *batch(t))
    norms.append(oracle(g)); losses.append(float(loss))
SEEN["equinox"] = {"norms": norms, "losses": losses, "digest": hashlib.sha256(b"".join(
    np.asarray(v).tobytes() for v in jax.tree.leaves(eqx.filter(model, eqx.is_array)))).hexdigest()}
# a loss scale of flax
from flax.training.dynamic_scale import DynamicScale
dynamic, tx = DynamicScale(scale=1024.0), clipped()
def scaled(params, state, x, y):
    _, _, loss, g = dynamic.value_and_grad(loss_fn)(params, x, y)
    u, state = tx.update(g, state, params)
    return optax.apply_updates(params, u), state, loss, g
train("loss scale", tx, jax.jit(scaled))
# a clip whose result is thrown away
def thrown(params, state, x, y):
    (loss, _), g = vg(params, x, y)
    first.update(g, first.init(params))
    u, state = second.update(g, state, params)
    return optax.apply_updates(params, u), state, loss, g
train("thrown", second, thrown)
# line searches, which differentiate by themselves; the loss is computed here, or stored by them
def searching(tx, of_stored):
    def step(params, state, x, y):
        of = lambda p: loss_fn(p, x, y)
        stored = optax.value_and_grad_from_state(of)
        loss, g = stored(params, state=state) if of_stored else value_and_grad(of)(params)
        u, state = tx.update(g, state, params, value=loss, grad=g, value_fn=of)
        return optax.apply_updates(params, u), state, loss, g
    return jax.jit(step)
tx = optax.lbfgs()
train("stored", tx, searching(tx, True))
tx = optax.chain(optax.clip_by_global_norm(0.5), optax.lbfgs())
train("search", tx, searching(tx, False))
# two losses are differentiated before either optimizer steps, as in most GANs
pair = {name: (optax.sgd(rate), fresh()) for name, rate in (("rival", 0.1), ("other", 0.2))}
states = {name: tx.init(params) for name, (tx, params) in pair.items()}
for name in pair:
    SEEN[name] = {"norms": [], "losses": []}
for t in range(3):
    made = {name: value_and_grad(loss_fn)(params, 0.5 * i + batch(t)[0], y)
            for i, (name, (_, params)) in enumerate(pair.items())}
    for name, (loss, g) in made.items():
        tx, params = pair[name]
        u, states[name] = tx.update(g, states[name], params)
        pair[name] = tx, optax.apply_updates(params, u)
        SEEN[name]["norms"].append(oracle(g)); SEEN[name]["losses"].append(float(loss))
for name, (_, params) in pair.items():
    SEEN[name]["digest"] = str(jax.tree.leaves(params))
# SAM: of optax, which asks for the second gradients itself or is handed them; and by hand
upwards = optax.chain(optax.contrib.normalize(), optax.sgd(0.05))
by = optax.contrib.sam(clipped(), upwards)
train("sam handed", by, jax.jit(stepper(by)))
asking = optax.contrib.sam(clipped(), upwards, opaque_mode=True)
def there(params, g):
    return jax.tree.map(lambda p, v: p + 0.05 * v / optax.global_norm(g), params, g)
def asks(params, state, x, y):
    loss, g = value_and_grad(loss_fn)(params, x, y)
    ask = lambda p, _: grad(loss_fn)(p, x, y)
    u, state = asking.update(g, state, params, grad_fn=ask)
    return optax.apply_updates(params, u), state, loss, ask(there(params, g), 0)
train("sam asking", asking, jax.jit(asks))
tx = clipped()
def by_hand(params, state, x, y):
    _, g = value_and_grad(loss_fn)(params, x, y)
    loss, g = value_and_grad(loss_fn)(there(params, g), x, y)
    u, state = tx.update(g, state, params)
    return optax.apply_updates(params, u), state, loss, g
train("sam by hand", tx, by_hand)
# a clip that comes after the step, compiled or not; and one between two optimizers
limit, plainly = optax.clip_by_global_norm(0.5), optax.sgd(1e-2)
def behind(params, state, x, y):
    (loss, _), g = vg(params, x, y)
    u, state = plainly.update(g, state, params)
    left, _ = limit.update(g, limit.init(params))
    return optax.apply_updates(params, u), state, loss, g
train("behind", plainly, jax.jit(behind))
train("behind eager", plainly, behind)
before, after = optax.sgd(1e-2), optax.sgd(2e-2)
begun = before.init(fresh())
def between(params, state, x, y):
    loss, g = value_and_grad(loss_fn)(params, x, y)
    params = optax.apply_updates(params, before.update(g, begun)[0])
    u, state = after.update(limit.update(g, limit.init(params))[0], state, params)
    return optax.apply_updates(params, u), state, loss, g
SEEN["before"] = {}
train("after", after, jax.jit(between))
SEEN["before"] = SEEN["after"]
# the state is made anew at every step, compiled with it or not
renewing = optax.chain(optax.clip_by_global_norm(0.5), optax.adam(1e-2))
def renewed(params, state, x, y):
    return stepper(renewing)(params, renewing.init(params), x, y)
train("renewed", renewing, jax.jit(renewed))
train("renewed eager", renewing, renewed)
# the new weights are thrown away
tx = clipped()
def unmoved(params, state, x, y):
    _, state, loss, g = stepper(tx)(params, state, x, y)
    return params, state, loss, g
train("unmoved", tx, unmoved)
# a mask that freezes nothing
masked = optax.masked(optax.sgd(1e-2), {"b1": True, "w1": False, "w2": True})
train("masked", masked, jax.jit(stepper(masked)))
# a guard of optax drops the third step and the fifth
params = fresh()
guarding = optax.apply_if_finite(clipped(), 1)
state = guarding.init(params)
@jax.jit
def guarded(params, state, x, y, scale):
    (loss, _), g = vg(params, x, y)
    u, state = guarding.update(jax.tree.map(lambda leaf: leaf * scale, g), state, params)
    return optax.apply_updates(params, u), state
for t in range(5):
    params, state = guarded(params, state, *batch(t), [1.0, 1.0, np.nan, 1.0, np.inf][t])
SEEN["guarded"] = {"norms": [], "losses": [], "digest": str(jax.tree.leaves(params))}
# clips that the script has written itself: as transformations, and in front of the optimizer
def by_code(bound):
    def update(g, state, params=None):
        most = jnp.minimum(1.0, bound(optax.global_norm(g)))
        return jax.tree.map(lambda leaf: leaf * most, g), state
    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)
tx = optax.chain(by_code(lambda norm: jnp.exp(-norm)), optax.sgd(1e-2))
train("guarded by code", tx, jax.jit(stepper(tx)))
tx = optax.chain(by_code(lambda norm: 0.5 / norm), optax.sgd(1e-2))
train("by code", tx, jax.jit(stepper(tx)))
def clipping(by):
    tx = optax.adam(1e-2)
    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params, state, x, y):
        loss, g = value_and_grad(loss_fn)(params, x, y)
        u, state = tx.update(by(g), state, params)
        return optax.apply_updates(params, u), state, loss, g
    return tx, step
def whole(g): return jax.tree.map(lambda v: v * jnp.minimum(1, 0.5 / optax.global_norm(g)), g)
def apiece(g): return jax.tree.map(lambda v: v * jnp.minimum(1, 0.1 / jnp.linalg.norm(v)), g)
train("by hand", *clipping(whole))
tx = optax.chain(optax.stateless(lambda g, params: whole(g)), optax.sgd(1e-2))
train("by hand in a function", tx, jax.jit(stepper(tx)))
def elements(g): return {name: jnp.clip(v, -0.01, 0.01) for name, v in g.items()}
train("by hand in elements", *clipping(elements))
train("by hand apiece", *clipping(apiece))
# a guard by hand, behind an optimizer that counts its steps, and behind one that does not
def kept(tx):
    @jax.jit
    def step(params, state, x, y, scale):
        g = jax.tree.map(lambda leaf: leaf * scale, grad(loss_fn)(params, x, y))
        u, after = tx.update(g, state, params)
        finite = jnp.isfinite(optax.global_norm(g))
        pairs = (optax.apply_updates(params, u), after), (params, state)
        return jax.tree.map(lambda new, old: jnp.where(finite, new, old), *pairs)
    return step
for name, tx in (("guarded adam", optax.adam(1e-2)), ("guarded sgd", optax.sgd(1e-2))):
    params, step = fresh(), kept(tx)
    state = tx.init(params)
    for t in range(5):
        params, state = step(params, state, *batch(t), [1.0, 1.0, np.nan, 1.0, 1.0][t])
    SEEN[name] = {"norms": [], "losses": [], "digest": str(jax.tree.leaves(params))}
print(json.dumps(SEEN))
"""

FIXED = {"eager": 0.02, "scan": np.inf, "thrown": np.inf, "behind": np.inf,
         "masked": np.inf, "behind eager": np.inf, "before": np.inf, "units": np.inf,
         "elements": 0.01,
         "parts": 0.03, "part twice": 0.03,
         "by hand in elements": 0.01, "by hand apiece": np.inf,
         "stored": np.inf, "rival": np.inf, "other": np.inf}  # fmt: skip
"""Thresholds of the trainings whose clip is not that of the others."""


@pytest.fixture(scope="module")
def seen(workbench: Any, once: Any) -> tuple[Any, Any, Run]:
    """What the script printed plainly, what it printed observed, and the run."""

    def train(folder: Path) -> tuple[Any, Any, str]:
        bench = workbench(folder)
        bench.environment["XLA_FLAGS"] = "--xla_force_host_platform_device_count=2"
        bench.write("train.py", TRAIN)
        plain, observed = bench.both("train.py")
        assert plain.returncode == observed.returncode == 0, observed.stderr
        assert "RuntimeWarning" not in observed.stderr
        return json.loads(plain.stdout), json.loads(observed.stdout), bench.run_file()

    plain, observed, path = once("jax", train)
    return plain, observed, steadygrad.open_run(path)


def steps_of(run: Run, name: str, plain: Any) -> dict[str, Any]:
    steps = run.steps
    mine = steps.optimizer == list(plain).index(name)
    columns = ("norm", "loss", "threshold", "coef", "action", "lr")
    return {key: getattr(steps, key)[mine] for key in columns}


def test_observing_changes_no_bit(seen: Any) -> None:
    plain, observed, run = seen
    assert observed == plain
    left_unread, by_code, apiece = run.info["troubles"]
    assert (left_unread, apiece) == (LEFT_UNREAD, HAND_UNREAD)
    assert "the script's by_code clips by code of its own" in by_code


def test_every_training_is_an_optimizer_of_its_own(seen: Any) -> None:
    plain, _, run = seen
    kinds = [one["class"] for one in run.info["optimizers"]]
    assert len(kinds) == len(plain)
    assert kinds[:4] == ["AdamW", "SGD", "SGD", "SGD"]
    assert run.info["framework"] == "jax"
    assert run.info["amp"]
    names = {t.name for t in run.tensors if t.optimizer == 0}
    assert names == {"w1", "b1", "w2"}


def test_norms_and_losses_are_those_before_the_clip(seen: Any) -> None:
    plain, _, run = seen
    for name, want in plain.items():
        if name.startswith(("micro", "guarded")):
            continue
        if name == "sam handed":  # every second call is a step
            want = {key: want[key][1::2] for key in ("norms", "losses")}
        got = steps_of(run, name, plain)
        np.testing.assert_allclose(got["norm"], want["norms"], rtol=1e-5, err_msg=name)
        if want["losses"]:
            np.testing.assert_allclose(got["loss"], want["losses"], rtol=1e-5, err_msg=name)
        assert np.isfinite(got["loss"]).all(), name
        threshold = FIXED.get(name, 0.5)
        assert (got["threshold"] == threshold).all(), name
        if threshold == 0.5:
            coef = np.minimum(1, 0.5 / np.array(want["norms"]))
            np.testing.assert_allclose(got["coef"], coef, rtol=1e-5, err_msg=name)
            assert (got["action"] == np.where(coef < 1, "clip", "none")).all(), name


def test_a_step_that_a_guard_drops_is_a_skipped_one(seen: Any) -> None:
    plain, _, run = seen
    got = steps_of(run, "guarded", plain)
    assert got["action"].tolist() == ["clip", "clip", "skip", "clip", "skip"]
    assert np.isnan(got["norm"]).tolist() == [False, False, True, False, False]
    for name in ("guarded adam", "guarded sgd"):
        got = steps_of(run, name, plain)
        assert got["action"].tolist() == ["none", "none", "skip", "none", "none"], name
        assert np.isnan(got["norm"]).tolist() == [False, False, True, False, False]


def test_micro_batches_are_one_step(seen: Any) -> None:
    plain, _, run = seen
    for name in ("micro", "micro_tx"):
        got, losses = steps_of(run, name, plain), np.array(plain[name]["losses"])
        assert len(got["norm"]) == 3
        np.testing.assert_allclose(got["loss"], losses.reshape(3, 2).mean(1), rtol=1e-5)
        assert (got["threshold"] == 0.5).all()
        assert (got["coef"] < 1).all()
    got = steps_of(run, "micro_each", plain)  # its clip stands before each micro-batch
    np.testing.assert_allclose(got["norm"], plain["micro_each"]["norms"][1::2], rtol=1e-5)
    number = list(plain).index("micro_each")
    calls = [e.data for e in run.events if e.data.get("optimizer") == number]
    norms = [call["norm"] for call in calls]
    np.testing.assert_allclose(norms, plain["micro_each"]["norms"], rtol=1e-5)
    assert [call["backward_since_step"] for call in calls] == [1, 2] * 3


def test_learning_rates_are_read_where_optax_tells_them(seen: Any) -> None:
    plain, _, run = seen
    decayed = 1e-2 * 0.5 * (1 + np.cos(np.pi * np.arange(6) / 9))
    np.testing.assert_allclose(steps_of(run, "donated", plain)["lr"], decayed, rtol=1e-5)
    for name in ("scan", "micro", "finite", "train_state", "equinox", "sam handed", "sam asking"):
        np.testing.assert_allclose(steps_of(run, name, plain)["lr"], 1e-2, rtol=1e-6)


def test_a_clip_by_value_tells_what_it_left(seen: Any) -> None:
    plain, _, run = seen
    got = steps_of(run, "eager", plain)
    most = 0.02 * np.sqrt(8 * 16 + 16 + 16) / got["norm"]  # all elements at the limit
    assert ((got["coef"] > 0.5 * most) & (got["coef"] <= most)).all()
    assert (got["action"] == "clip").all()
    got = steps_of(run, "by hand in elements", plain)
    assert ((got["coef"] < 0.5) & (got["action"] == "clip")).all()
    for name in (
        "elements",
        "units",
        "by hand apiece",
    ):  # compiled: to read what they left could change bits
        got = steps_of(run, name, plain)
        assert np.isnan(got["coef"]).all()
        assert (got["action"] == "none").all()


@pytest.mark.parametrize(
    ("name", "tensors", "repeated", "told"),
    [("parts", [2, 1], [0, 0], set()), ("part twice", [1, 2, 1], [0, 0, 1], {"SG409"}),
     ("elements", [3, 3], [0, 1], {"SG409"})],
)  # fmt: skip
def test_clips_of_parts_are_repeated_where_a_part_was_clipped_before(
    seen: Any, name: str, tensors: list[int], repeated: list[int], told: set[str]
) -> None:
    plain, _, run = seen
    number = list(plain).index(name)
    of_it = [e for e in run.events if e.data.get("optimizer") == number]
    first = [e.data for e in of_it if e.step == 0]
    assert [call["params"] for call in first] == tensors
    assert [call["repeated"] for call in first] == repeated
    found = {f.id for f in steadygrad.diagnose(run) if f.optimizer == number}
    assert found & {"SG408", "SG409"} == told
    if name != "elements":  # every part is clipped
        got = steps_of(run, name, plain)
        np.testing.assert_allclose(got["coef"] * got["norm"], 0.05, rtol=1e-5)


def test_states_that_are_made_anew_and_weights_that_stay_are_counted(seen: Any) -> None:
    plain, _, run = seen
    counts = {each["index"]: each for each in run.info["loop"]["optimizers"]}
    names = list(plain)
    for key, rule, numbers in (
        ("renewed", "SG610", {names.index("renewed"): 6, names.index("renewed eager"): 5}),
        ("unmoved", "SG604", {names.index("unmoved"): 5}),
        ("raw", "SG502", {names.index("masked"): ["w1"]}),
    ):
        assert {i: each[key] for i, each in counts.items() if each[key]} == numbers
        assert {f.optimizer for f in steadygrad.diagnose(run) if f.id == rule} == set(numbers)


def test_clip_calls_are_placed_and_weights_read_before_the_first_step(seen: Any) -> None:
    plain, _, run = seen
    names = list(plain)
    calls = {name: [] for name in names}
    for event in run.events:
        if event.kind == "script_clip":
            calls[names[event.data["optimizer"]]].append(event.data)
    assert calls["scan"] == []
    for name in ("donated", "apart", "finite", "micro", "train_state", "shard_map"):
        steps = steps_of(run, name, plain)
        assert [call["call"] for call in calls[name]] == ["optax.clip_by_global_norm"] * len(
            steps["norm"]
        ), name
        for key, column in (("max_norm", "threshold"), ("norm", "norm"), ("coef", "coef")):
            got = [call[key] for call in calls[name]]
            np.testing.assert_array_equal(got, steps[column], err_msg=name)
    (eager,) = {(call["call"], call["by_value"]) for call in calls["eager"]}
    assert eager == ("optax.clip", True)
    assert all(np.isnan(call["max_norm"]) for call in calls["units"])  # each unit has its own
    told = [f.id for f in steadygrad.diagnose(run) if f.optimizer == names.index("units")]
    assert "SG411" not in told
    thrown = {call["discarded"] for call in calls["thrown"]}
    assert thrown == {True}
    assert not any(call["discarded"] for call in calls["apart"])
    assert {c["count"] for c in run.info["clip_calls"] if c["discarded"]} == {6}
    for name, late in (("behind", [1, 2, 3, 4, 5, 6]), ("behind eager", [1, 2, 3, 4, 5])):
        assert [call["step"] for call in calls[name] if call["after_step"]] == late
        told = [f.id for f in steadygrad.diagnose(run) if f.optimizer == names.index(name)]
        assert told[:1] == ["SG405"]
    assert not any(call["after_step"] for call in calls["before"] + calls["after"])
    at, deviations = run.samples("weight_std")
    first = [i for i, t in enumerate(run.tensors) if t.optimizer == 0 and t.name == "w1"]
    want = np.std(np.random.default_rng(1).standard_normal((8, 16)) * 0.4)
    assert at[0] == 0
    np.testing.assert_allclose(deviations[0, first], want, rtol=1e-5)


FUSED = """
import hashlib
import jax, jax.numpy as jnp, optax

x = jax.random.normal(jax.random.key(9), (64, 8))
y = (jnp.abs(x.sum(1)) * 3).astype(int) % 10

def loss_fn(p, x=x):
    hidden = jax.nn.gelu(x @ p["w"] + p["b"])
    hidden = jnp.tanh(hidden @ p["u"] + p["c"]) + hidden
    scores = hidden @ p["v"] + p["d"]
    decay = 1e-2 * sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(p))
    return optax.softmax_cross_entropy_with_integer_labels(scores, y).mean() + decay

clips = [optax.clip(0.01), optax.clip_by_global_norm(0.05)]
adam, units = optax.adam(1e-3), [optax.adaptive_grad_clip(0.01)]
sgd = optax.sgd(0.1, momentum=0.9)
for first, last in (([], adam), (clips[:1], adam), (clips, adam), (units, sgd), (units, adam)):
    tx = optax.chain(*first, last)
    shapes = {"w": (8, 32), "b": (32,), "u": (32, 32), "c": (32,), "v": (32, 10), "d": (10,)}
    sizes = enumerate(shapes.items())
    params = {k: jax.random.normal(jax.random.key(i), s) / 3 for i, (k, s) in sizes}
    state = tx.init(params)

    @jax.jit
    def step(params, state):  # nothing but the optimizer reads the gradients
        loss, grads = jax.value_and_grad(loss_fn)(params)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    for _ in range(30):
        params, state = step(params, state)
    leaves = [leaf.tobytes() for leaf in jax.tree.leaves(jax.device_get(params))]
    print(hashlib.sha256(b"".join(leaves)).hexdigest())

tx = optax.chain(*units, sgd)
params = {k: jax.random.normal(jax.random.key(i), s) / 3 for i, (k, s) in enumerate(shapes.items())}
state = tx.init(params)

@jax.jit
def step_on(params, state, x):
    loss, grads = jax.value_and_grad(lambda p: loss_fn(p, x))(params)
    updates, state = tx.update(grads, state, params)
    return optax.apply_updates(params, updates), state, loss, optax.global_norm(grads)

for i in range(30):
    params, state, *told = step_on(params, state, jax.random.normal(jax.random.key(i), x.shape))
leaves = [leaf.tobytes() for leaf in jax.tree.leaves(jax.device_get(params))]
print(hashlib.sha256(b"".join(leaves)).hexdigest())

def root(p, x):
    return jnp.linalg.norm(jnp.tanh(x @ p["w"] + p["b"]) @ p["v"] - 1) / 64**0.5

tx = optax.adamw(1e-2)
state = tx.init(params)

@jax.jit
def rooted(params, state, x):  # nothing reads the loss
    updates, state = tx.update(jax.grad(root)(params, x), state, params)
    return optax.apply_updates(params, updates), state

for i in range(30):
    params, state = rooted(params, state, jax.random.normal(jax.random.key(i), x.shape))
leaves = [leaf.tobytes() for leaf in jax.tree.leaves(jax.device_get(params))]
print(hashlib.sha256(b"".join(leaves)).hexdigest())

tx = optax.sgd(0.1)

def body(params, _):
    loss, grads = jax.value_and_grad(loss_fn)(params)
    return optax.apply_updates(params, tx.update(grads, tx.init(params))[0]), loss

# nothing but the array of losses reads them
losses = jax.jit(lambda params: jax.lax.scan(body, params, length=30)[1])(params)
print(hashlib.sha256(jax.device_get(losses).tobytes()).hexdigest())
"""


def test_gradients_and_losses_stay_fused_with_what_reads_them(bench: Any) -> None:
    bench.write("fused.py", FUSED)
    plain, observed = bench.both("fused.py")
    assert observed.stdout == plain.stdout, observed.stderr
    run = steadygrad.open_run(bench.run_file())
    assert len(run.steps.norm) == 240
    assert {LOSS_UNREAD, LEFT_UNREAD} <= set(run.info["troubles"])
    coef = [run.steps.coef[run.steps.optimizer == number] for number in range(5)]
    assert (coef[0] == 1).all()
    assert ((coef[1] < 1) & (coef[2] < coef[1])).all()
    assert math.isnan(run.info["overhead_seconds"])  # what the figures cost is in the steps


CLIPPED = """
import sys
import jax, jax.numpy as jnp, numpy as np, optax

limit, by_hand = float(sys.argv[1]), sys.argv[-1] == "hand"
tx = optax.sgd(0.1)
tx = tx if by_hand else optax.chain(optax.clip_by_global_norm(limit), tx)
params = {"w": jnp.array([3.0, 4.0])}
state = tx.init(params)

@jax.jit
def step(params, state, scale):
    g = jax.grad(lambda p: 0.5 * scale * jnp.sum(p["w"] ** 2))(params)
    norm = jnp.linalg.norm(g["w"])
    handed = {"w": jnp.where(norm > limit, g["w"] * limit / norm, g["w"])} if by_hand else g
    u, state = tx.update(handed, state, params)
    return optax.apply_updates(params, u), state

for scale in map(float, sys.argv[2:-1]):
    params, state = step(params, state, scale)
print(*params["w"].tolist())
"""


@pytest.mark.parametrize(
    ("spec", "own"),
    [("norm:0.25", "clip_by_global_norm"), ("norm:0.25", "clip by hand"),
     ("norm-schedule:0.25,to=0.25,over=9", "clip_by_global_norm")],
)  # fmt: skip
def test_clip_replaces_the_scripts_own_and_drops_broken_steps(
    bench: Any, spec: str, own: str
) -> None:
    bench.write("clipped.py", CLIPPED)
    want = bench.python("clipped.py", "0.25", "1", "1", "optax")
    done = bench.steadygrad(
        "run",
        "-q",
        "--force",
        "--out",
        "run.db",
        "--clip",
        spec,
        "clipped.py",
        "100",
        "1",
        "nan",
        "1",
        own[-4:],
    )
    assert done.returncode == 0, done.stderr
    got, expected = (np.array(text.stdout.split(), float) for text in (done, want))
    np.testing.assert_allclose(got, expected, rtol=1e-6)
    run = steadygrad.open_run(bench.run_file())
    assert run.steps.action.tolist() == ["clip", "skip", "clip"]
    assert run.steps.threshold.tolist() == [0.25] * 3
    np.testing.assert_allclose(run.steps.norm[[0, 2]], [5.0, 4.975], rtol=1e-6)
    assert run.info["troubles"] == [f"the script's own {own} was replaced by --clip"]


ASKING = """
import jax.numpy as jnp, optax
mine = optax.chain(optax.clip(2.0), optax.sgd(1.0))
tx = optax.contrib.sam(mine, optax.sgd(1.0), opaque_mode=True)
params = {"w": jnp.array([3.0])}
updates, _ = tx.update(params, tx.init(params), params, grad_fn=lambda p, _: p)
print(updates["w"].item())
"""


def test_where_clip_does_not_reach_the_scripts_own_stays(bench: Any) -> None:
    bench.write("asking.py", ASKING)
    done = bench.steadygrad("run", "-q", "--out", "run.db", "--clip", "norm:1", "asking.py")
    assert done.stdout == "-2.0\n", done.stderr
    (told,) = steadygrad.open_run(bench.run_file()).info["troubles"]
    assert told.startswith("--clip reached the first gradients of a SAM alone")


DEVICES = """
import jax, jax.numpy as jnp, optax
from jax.sharding import Mesh, PartitionSpec as P

params = {"w": jnp.array([3.0, 4.0]), "b": jnp.array([12.0])}
for way in ("pmap", "shard_map"):
    tx = optax.sgd(0.5)

    def step(params, state):
        g = jax.tree.map(lambda leaf: 2 * leaf, params)
        u, state = tx.update(g, state, params)
        return optax.apply_updates(params, u), state

    if way == "pmap":
        many, state = jax.tree.map(lambda v: jnp.stack([v] * 2), (params, tx.init(params)))
        after, _ = jax.pmap(step, axis_name="d")(many, state)
        after = jax.tree.map(lambda v: v[0], after)
    else:  # a tensor is split, and each device clips its part by the whole norm
        split = ({"w": P("d"), "b": P()}, P())
        mesh = Mesh(jax.devices(), ("d",))
        whole = jax.shard_map(step, mesh=mesh, in_specs=split, out_specs=split)
        after, _ = jax.jit(whole)(params, tx.init(params))
    print(*after["w"].tolist(), *after["b"].tolist())
"""


def test_clip_by_the_whole_norm_on_each_of_several_devices(bench: Any) -> None:
    bench.environment["XLA_FLAGS"] = "--xla_force_host_platform_device_count=2"
    bench.write("devices.py", DEVICES)
    done = bench.steadygrad("run", "-q", "--out", "run.db", "--clip", "norm:13", "devices.py")
    assert done.stdout == "1.5 2.0 6.0\n" * 2, done.stderr
    steps = steadygrad.open_run(bench.run_file()).steps
    assert steps.norm.tolist() == [26.0, 26.0]
    assert steps.coef.tolist() == [0.5, 0.5]
